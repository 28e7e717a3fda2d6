"""The embedded default suite: eight tasks from the docstrings that the install itself brought. Nothing is downloaded.

A sentence in, the function you need out. The rules, so that the numbers mean something:

* Text: the first paragraph without code, roles, quotes and defaults; 5 to 60 words; one text per normalised summary.
  The function's own name becomes "it" (an ordinary lower-case word such as "sum" only where the docs mark it as code),
  the name of any library "the library".
* Size: at most ``per_library`` functions of a library and ``total`` in all, shared evenly; a file gives ``PER_ROUND``
  functions before the next file has its turn.
* Split: ONE for all tasks, about 70 / 10 / 20, by the hash of the file that defines the function; files that share a
  near-duplicate (more than 0.8 of the shorter text's 5-grams) go together, and a later sentence that has a
  near-duplicate in another split is left out. The split does not depend on the seed.
* Area: the last word of the file's path that ``_suite.AREAS`` knows, the same word in every library, else the library's
  own area. Functions of no area, and labels with fewer than ``_suite.FEWEST`` rows or none in train or test, are not in
  that task.

The layout of a task folder is described in docs/data.md.
"""

import gc
import inspect
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anabranch.errors import InputError, WorkError
from anabranch.settings import check
from anabranch.types import Count
from anabranch.world import _mask, _prose, _scan, _split, _suite
from anabranch.world._prose import plain
from anabranch.world._scan import Function, digest
from anabranch.world._split import normal
from anabranch.world._suite import Row, Task, area, card, document, tasks

PER_ROUND = 8


def docstrings(
    folder: Path,
    *,
    seed: int = 0,
    per_library: Count = 700,
    total: Count = 4000,
    roots: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Write the suite to ``folder`` and return its manifest; if a whole suite is there that fits, return its at once.

    ``folder/<task>/{train,valid,test}.jsonl`` and ``task.json`` (``corpus.jsonl`` for ``find``), ``functions.jsonl``
    (every function with library, area, file, split, signature, summary) and ``manifest.json`` (versions, counts, hash).
    The same versions, seed and caps give the same bytes on every machine. ``roots``: libraries and their folders,
    instead of what is installed. InputError: ``folder`` holds something else, a root is no folder, too few functions.
    """
    folder = Path(folder)
    caps = check(docstrings, {"per_library": per_library, "total": total}, "docstrings")
    places = {name: Path(path) for name, path in (roots or _scan.installed()).items()}
    if missing := [str(place) for place in places.values() if not place.is_dir()]:
        raise InputError(f"docstrings: roots are the folders of libraries; there is no folder {', '.join(missing)}")
    made = {
        "suite": "docstrings", "format": 1, "seed": seed, **caps,
        "versions": {name: _scan.version(name, place) for name, place in sorted(places.items())},
        "code": digest(*map(inspect.getsource, (_mask, _prose, _scan, _split, _suite, sys.modules[__name__]))),
    }  # fmt: skip
    try:
        old = _manifest(folder)
        if old.items() >= made.items() and old["hash"] == _hash(_there(folder)):
            return old
        with _uncollected():
            rows = _divided(_rows(places, seed, **caps))
        return _write(folder, made, rows, tasks(rows, seed))
    except OSError as error:
        raise WorkError(f"the docstring suite could not be written to {folder}: {error}") from error


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which walks each growing syntax tree again and again: it triples the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _manifest(folder: Path) -> dict[str, Any]:
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return {}
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if isinstance(manifest, dict) and manifest.get("suite") == "docstrings":
        return manifest
    raise InputError(f"docstrings go into a new or empty folder, or over an older suite; {folder} is neither")


def _there(folder: Path) -> dict[str, bytes]:
    names = (file for file in folder.rglob("*.json*") if file != folder / "manifest.json")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in names}


def _hash(texts: Mapping[str, str | bytes]) -> str:
    return digest(*(part for name in sorted(texts) for part in (name, texts[name])))


def _rows(places: Mapping[str, Path], seed: int, per_library: int, total: int) -> list[Row]:
    """The functions that are kept, with their texts; small libraries first, what they leave goes to the others."""
    chosen: list[tuple[Function, str]] = []
    seen: set[str] = set()
    order = sorted(places, key=lambda name: (len(_scan.files(places[name])), name))
    for i, name in enumerate(order):
        share = min(per_library, (total - len(chosen)) // (len(order) - i))
        chosen += _drawn(name, places[name], seed, share, seen)
    mask = _mask.masker([text for _, text in chosen], places)
    seen = set()  # again, because masks make some texts equal, and some too short
    rows, candidates = list[Row](), list[list[str]]()
    for function, summary in chosen:
        masked = mask(function)
        if not _fits(text := masked(summary), seen):
            continue
        doc = _prose.parse(function.doc)
        later, about = [masked(s) for s in doc.later], [masked(s) for s in doc.about]
        marked = [_mask.tagged(s, function.params or ()) for s in dict.fromkeys([*later, *about])]
        tagged = tuple(found for found in marked if found and 5 <= len(found[0]) <= 60)[:3]
        rows.append(Row(function, area(function), "", text, plain(summary), "", tagged, doc.sections))
        candidates.append([s for s in later if _prose.stands_alone(s)])
    uses = Counter(normal(plain(s)) for row, later in zip(rows, candidates, strict=True) for s in {row.text, *later})
    own = [next((s for s in later if uses[normal(plain(s))] == 1), "") for later in candidates]
    return [row._replace(later=later) for row, later in zip(rows, own, strict=True)]


def _divided(rows: list[Row]) -> list[Row]:
    """Each row's split; a later or tagged sentence that nearly repeats a text of another split is taken away."""
    tagged: dict[str, int] = {}  # the first row that has the sentence keeps it
    for i, row in enumerate(rows):
        for tokens, _ in row.tagged:
            tagged.setdefault(" ".join(tokens), i)
    texts = [*(plain(row.text) for row in rows), *(plain(row.later) for row in rows), *tagged]
    owners = [*range(len(rows)), *range(len(rows)), *tagged.values()]
    pairs = _split.twins(texts)
    splits = _split.split([row.function.file for row in rows], [(i, j) for i, j in pairs if j < len(rows)])
    astray = {texts[j] for i, j in pairs if splits[owners[i]] != splits[owners[j]]}

    def kept(i: int, tokens: list[str]) -> bool:
        return tagged[" ".join(tokens)] == i and " ".join(tokens) not in astray

    return [
        row._replace(
            split=splits[i],
            later="" if plain(row.later) in astray else row.later,
            tagged=tuple(found for found in row.tagged if kept(i, found[0])),
        )
        for i, row in enumerate(rows)
    ]


def _drawn(name: str, place: Path, seed: int, share: int, seen: set[str]) -> list[tuple[Function, str]]:
    """``share`` functions, each with its summary: ``PER_ROUND`` of a file, and as many again where that is too few."""
    files: list[list[tuple[Function, str]]] = []
    for functions in _scan.scan(name, place, seed=seed):
        drawn = sorted(functions, key=lambda f: digest(seed, f.name))
        files.append([(f, text) for f in drawn if _fits(text := _prose.summary(f.doc), seen)])
        if sum(min(len(mine), PER_ROUND) for mine in files) >= share:
            break
    turns = [(i // PER_ROUND, k, i) for k, mine in enumerate(files) for i in range(len(mine))]
    return [files[k][i] for _, k, i in sorted(turns)[:share]]


def _fits(text: str, seen: set[str]) -> bool:
    """5 to 60 words, and a text that nobody had before."""
    key = normal(plain(text))
    if not 5 <= len(plain(text).split()) <= 60 or key in seen:
        return False
    seen.add(key)
    return True


def _write(folder: Path, made: dict[str, Any], rows: list[Row], suite: dict[str, Task]) -> dict[str, Any]:
    """All files into a new folder beside ``folder``, then two renames: a reader sees the old suite or the new one."""
    lines: dict[str, list[dict[str, Any]]] = {
        "functions.jsonl": [
            {
                "name": row.function.name, "library": row.function.library, "area": row.area, "file": row.function.file,
                "split": row.split, "signature": row.function.signature, "summary": row.shown,
            }
            for row in rows
        ],
        "find/corpus.jsonl": [{"id": row.function.name, "text": document(row)} for row in rows],
    }  # fmt: skip
    for name, task in suite.items():
        for split in _split.SPLITS:
            lines[f"{name}/{split}.jsonl"] = [fields for row, fields in task.rows if row.split == split]
    texts = {name: "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in mine) for name, mine in lines.items()}
    texts |= {f"{name}/task.json": _json(card(name, task, made["versions"])) for name, task in suite.items()}
    manifest = made | {
        "functions": Counter(row.function.library for row in rows),
        "splits": Counter(row.split for row in rows),
        "areas": Counter(row.area for row in rows if row.area),
        "files": len({row.function.file for row in rows}),
        "tasks": {name: {split: len(lines[f"{name}/{split}.jsonl"]) for split in _split.SPLITS} for name in suite},
        "hash": _hash(texts),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        for name, text in (texts | {"manifest.json": _json(manifest)}).items():
            file = Path(beside, "new", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
        if folder.exists():
            folder.rename(Path(beside, "old"))
        Path(beside, "new").rename(folder)
    return json.loads(_json(manifest))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
