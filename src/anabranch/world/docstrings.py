"""The embedded default suite: eight tasks made of the docstrings that the install itself brought. Nothing is downloaded.

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
  own area. Functions of no area, and labels with fewer than ``_suite.FEWEST`` rows or absent from a split, are left out.

The layout of a task folder is described in docs/data.md.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anabranch.core.names import check
from anabranch.errors import InputError, WorkError
from anabranch.types import Count
from anabranch.world import _mask, _prose, _scan, _split, _suite
from anabranch.world._prose import plain
from anabranch.world._scan import Function, digest
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
    """Write the suite to ``folder`` and return its manifest; when the manifest there fits already, return that at once.

    ``folder/<task>/{train,valid,test}.jsonl`` and ``task.json`` (``corpus.jsonl`` for ``find``), ``functions.jsonl`` (every
    function with its library, area, file, split, signature and summary) and ``manifest.json`` (versions, counts, hash).
    The same versions, seed and caps give the same bytes on every machine. ``roots`` are library names and their folders
    instead of what is installed. InputError: ``folder`` holds something else, or there are too few functions for a task.
    """
    folder = Path(folder)
    caps = check(docstrings, {"per_library": per_library, "total": total}, "docstrings")
    places = {name: Path(path) for name, path in (roots or _scan.installed()).items()}
    code = digest(*(Path(m.__file__).read_bytes() for m in (_mask, _prose, _scan, _split, _suite)), Path(__file__).read_bytes())
    versions = {name: _scan.version(name, place) for name, place in sorted(places.items())}
    made = {"format": 1, "seed": seed, **caps, "code": code, "versions": versions}
    if (old := _manifest(folder)) and old.items() >= made.items():
        return old
    rows = _rows(places, seed, **caps)
    return _write(folder, made, rows, tasks(rows, seed))


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / "manifest.json"
    if folder.exists() and not file.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"docstrings are written to a new or an empty folder, or over an older suite; {folder} is neither")
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        return {}  # half a manifest: make the suite again


def _rows(places: Mapping[str, Path], seed: int, per_library: int, total: int) -> list[Row]:
    """The functions that are kept, each with its texts and its split; small libraries first, they leave room for others."""
    chosen: list[tuple[Function, str]] = []
    seen: set[str] = set()
    order = sorted(places, key=lambda name: (len(_scan.files(places[name])), name))
    for i, name in enumerate(order):
        share = min(per_library, (total - len(chosen)) // (len(order) - i))
        chosen += _drawn(name, places[name], seed, share, seen)
    mask = _mask.masker([text for _, text in chosen], places)
    found = [_texts(function, text, mask(function)) for function, text in chosen]
    seen = set()
    kept = [i for i, (text, *_) in enumerate(found) if _fits(text, seen)]  # masks make some texts equal, or too short
    functions, shown = [chosen[i][0] for i in kept], [plain(chosen[i][1]) for i in kept]
    texts, laters, tags, sections = zip(*(found[i] for i in kept), strict=True) if kept else ((), (), (), ())
    uses = Counter(key for mine in (texts, *laters) for key in {_split.normal(plain(text)) for text in mine})
    later = [next((text for text in mine if uses[_split.normal(plain(text))] == 1), "") for mine in laters]
    owned = [(i, " ".join(tokens)) for i, mine in enumerate(tags) for tokens, _ in mine]
    pool = [*map(plain, texts), *map(plain, later), *(text for _, text in owned)]
    owners = [*range(len(kept)), *range(len(kept)), *(i for i, _ in owned)]
    pairs = _split.twins(pool)
    splits = _split.split([f.file for f in functions], [(i, j) for i, j in pairs if j < len(kept)])
    astray = {pool[j] for i, j in pairs if splits[owners[i]] != splits[owners[j]]}
    return [
        Row(
            function, area(function), splits[i], texts[i], shown[i], "" if plain(later[i]) in astray else later[i],
            tuple(t for t in tags[i] if " ".join(t[0]) not in astray), sections[i],
        )
        for i, function in enumerate(functions)
    ]  # fmt: skip


def _drawn(name: str, place: Path, seed: int, share: int, seen: set[str]) -> list[tuple[Function, str]]:
    """``share`` functions with their summaries: ``PER_ROUND`` of every file, then as many again where that is too few."""
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
    key = _split.normal(plain(text))
    if not 5 <= len(plain(text).split()) <= 60 or key in seen:
        return False
    seen.add(key)
    return True


def _texts(function: Function, summary: str, masked: Callable[[str], str]) -> tuple[str, list[str], list, frozenset[str]]:
    """Masked: the summary, later sentences, at most two sentences that mark parameters; and the sections."""
    doc = _prose.parse(function.doc)
    later, about = [masked(s) for s in doc.later], [masked(s) for s in doc.about]
    found = [_mask.tagged(text, function.params or ()) for text in dict.fromkeys([*later, *about])]
    fit = [mine for mine in found if mine and 5 <= len(mine[0]) <= 60]
    return masked(summary), [s for s in later if _prose.stands_alone(s)], fit[:2], doc.sections


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
    texts = {name: "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in mine) for name, mine in lines.items()}
    texts |= {f"{name}/task.json": _json(card(name, task, made["versions"])) for name, task in suite.items()}
    manifest = made | {
        "functions": Counter(row.function.library for row in rows),
        "splits": Counter(row.split for row in rows),
        "areas": Counter(row.area for row in rows if row.area),
        "files": len({row.function.file for row in rows}),
        "tasks": {name: {split: len(lines[f"{name}/{split}.jsonl"]) for split in _split.SPLITS} for name in suite},
        "hash": digest(*(part for name in sorted(texts) for part in (name, texts[name]))),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
            for name, text in (texts | {"manifest.json": _json(manifest)}).items():
                file = Path(beside, "new", name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8", newline="\n")
            if folder.exists():
                folder.rename(Path(beside, "old"))
            Path(beside, "new").rename(folder)
    except OSError as error:
        raise WorkError(f"the docstring suite could not be written to {folder}: {error}") from error
    return json.loads(_json(manifest))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
