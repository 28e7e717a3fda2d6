"""The embedded suite: shapes, one honest split, masks, the same bytes twice. Never a score."""

import json
import math
import os
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anabranch.errors import InputError, WorkError
from anabranch.world import _mask, _prose, _scan, _split
from anabranch.world.docstrings import docstrings

TASKS = {
    "library": "classify", "area": "classify", "sections": "classify", "arity": "regress", "params": "tag",
    "same": "pair-classify", "which": "multiple-choice", "find": "retrieve",
}  # fmt: skip
SPLITS = ("train", "valid", "test")
WORDS = [a + b + c for a in ("lo", "mi", "ta", "ru", "se") for b in ("ran", "dol", "vik", "pem") for c in ("ar", "et")]
BOOM = 'raise RuntimeError("imported")\n'


def sentence(rng: random.Random, start: str, n: int = 9) -> str:
    return " ".join([start, *rng.choices(WORDS, k=n)]) + "."


def function(rng: random.Random, name: str) -> str:
    """One function with a numpy docstring; every other one raises, every third has an example."""
    params = rng.sample(["width", "order", "scale", "depth_limit", "seed_value"], k=rng.randint(1, 4))
    raises = "\n    Raises\n    ------\n    ValueError\n        If it fails.\n" if rng.random() < 0.5 else ""
    example = "\n    Examples\n    --------\n    >>> 1\n    1\n" if rng.random() < 0.4 else ""
    return f'''
def {name}({", ".join(params)}=None):
    """{sentence(rng, "Compute the")}

    {sentence(rng, "The result")} {sentence(rng, f"If `{params[0]}` is ``None``, then")}

    Parameters
    ----------
    {params[-1]} : int
        {sentence(rng, f"How many of `{params[-1]}` to")}
{raises}{example}    """
'''


def library(root: Path, name: str, areas: tuple[str, ...], rng: random.Random) -> None:
    """``areas`` are packages of private files, re-exported; importing any of it fails."""
    for area in areas:
        place = root / name / area
        place.mkdir(parents=True)
        exports = []
        for i in range(22):
            names = [f"{name}_{area}_{i}_{k}" for k in range(5)]
            exports += [f"from ._part{i} import {n}\n" for n in names]
            (place / f"_part{i}.py").write_text(BOOM + "".join(function(rng, n) for n in names))
        (place / "__init__.py").write_text("".join(exports) + BOOM)
    (root / name / "__init__.py").write_text(BOOM)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, rng = tmp_path_factory.mktemp("roots"), random.Random(0)
    library(root, "alpha", ("signal", "stats"), rng)
    library(root, "beta", ("stats", "io"), rng)
    return {"alpha": root / "alpha", "beta": root / "beta"}


@pytest.fixture(scope="module")
def suite(roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "suite"
    docstrings(folder, roots=roots)
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def functions(root: Path, name: str = "tiny") -> dict[str, _scan.Function]:
    return {f.name: f for found in _scan.scan(name, root, seed=0) for f in found}


def check(folder: Path) -> None:
    """All that a suite promises, whatever it was made from."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    known = {row["name"]: row for row in lines(folder / "functions.jsonl")}
    assert sum(manifest["functions"].values()) == sum(manifest["splits"].values()) == len(known) <= manifest["total"]
    assert max(manifest["functions"].values()) <= manifest["per_library"]
    assert {p.name for p in folder.iterdir() if p.is_dir()} == set(TASKS)
    splits = defaultdict(set)
    for row in known.values():
        splits[row["file"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    corpus = {row["id"]: row["text"] for row in lines(folder / "find" / "corpus.jsonl")}
    assert set(corpus) == set(known) and all(text.startswith(name) for name, text in corpus.items())
    texts: list[tuple[str, str]] = []
    for task, kind in TASKS.items():
        card = json.loads((folder / task / "task.json").read_text(encoding="utf-8"))
        rows = {split: lines(folder / task / f"{split}.jsonl") for split in SPLITS}
        assert (card["name"], card["kind"], card.get("multilabel", False)) == (task, kind, task == "sections")
        assert {split: len(found) for split, found in rows.items()} == manifest["tasks"][task]
        assert all(card[f"n_{split}"] == len(found) > 0 for split, found in rows.items())
        for split, row in ((part, row) for part in SPLITS for row in rows[part]):
            label, n = row["label"], len(card["labels"] or ())
            if kind in ("classify", "pair-classify"):
                assert all(0 <= x < n for x in (label if task == "sections" else [label]))
            elif kind == "tag":
                assert len(label) == len(row["tokens"]) and max(label) < n and row["text"] == " ".join(row["tokens"])
                assert card["labels"].index("B-param") in label
            elif kind == "regress":
                assert isinstance(label, float) and label >= 0
            elif kind == "retrieve":
                assert len(label) == 1 and known[label[0]]["split"] == split
            else:
                assert len(row["choices"]) == len(set(row["choices"])) == 4 and 0 <= label < 4
            if kind != "multiple-choice":
                texts.append((split, row["text"]))
            if "text_b" in row:
                texts.append((split, row["text_b"]))
        if task in ("library", "area", "same"):
            held = Counter(row["label"] for found in rows.values() for row in found)
            assert len(held) == len(card["labels"]) and min(held.values()) >= 20
    unique = sorted(set(texts))
    pairs = [(unique[i], unique[j]) for i, j in _split.twins([text for _, text in unique])]
    assert not [pair for pair in pairs if pair[0][0] != pair[1][0]]


def test_a_made_suite_keeps_its_promises(suite: Path) -> None:
    check(suite)
    cards = {task: json.loads((suite / task / "task.json").read_text(encoding="utf-8")) for task in TASKS}
    assert cards["library"]["labels"] == ["alpha", "beta"]
    assert cards["area"]["labels"] == ["files", "signals and images", "statistics"]
    assert cards["params"]["labels"] == ["O", "B-param", "B-value"]
    assert cards["find"]["metric"] == "recall@5"


def test_labels_are_right(suite: Path, roots: dict[str, Path]) -> None:
    """Every row against the function that it came from, by its text."""
    known = {_prose.plain(_prose.summary(f.doc)): f for name in roots for f in functions(roots[name], name).values()}
    cards = {task: json.loads((suite / task / "task.json").read_text()) for task in TASKS}
    every = {task: [row for split in SPLITS for row in lines(suite / task / f"{split}.jsonl")] for task in TASKS}
    for row in every["library"]:
        assert cards["library"]["labels"][row["label"]] == known[row["text"]].library
    for row in every["sections"]:
        f = known[row["text"]]
        held = {"parameters", *(["raises"] if "Raises" in f.doc else []), *(["examples"] if ">>>" in f.doc else [])}
        assert {cards["sections"]["labels"][x] for x in row["label"]} == held
    for row in every["arity"]:
        assert math.expm1(row["label"]) == pytest.approx(len(known[row["text"]].params or ()), abs=1e-3)
    for row in every["which"]:
        assert known[row["choices"][row["label"]]].signature == row["text"]
    by_name = {f.name: f for f in known.values()}
    later = {row["text"]: by_name[row["label"][0]] for row in every["find"]}
    for text, f in later.items():
        assert text in _prose.plain(" ".join(_prose.parse(f.doc).later))
    for row in every["same"]:
        first, second = known[row["text"]], later[row["text_b"]]
        assert first.file == second.file
        assert cards["same"]["labels"][row["label"]] == ("same" if first == second else "different")
    for row in every["params"]:
        names = {token for token, label in zip(row["tokens"], row["label"], strict=True) if label == 1}
        assert names and names <= {"width", "order", "scale", "depth_limit", "seed_value"}


def test_the_same_bytes_twice_whatever_the_order_of_the_disk(
    suite: Path, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = os.walk

    def backwards(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for place, folders, names in walk(top):
            folders.sort(reverse=True)
            yield place, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    docstrings(tmp_path / "again", roots=dict(reversed(roots.items())))
    assert tree(tmp_path / "again") == tree(suite)


def test_a_seed_draws_other_functions_but_moves_none_to_another_split(
    suite: Path, roots: dict[str, Path], tmp_path: Path
) -> None:
    docstrings(tmp_path / "a", roots=roots, total=220)
    docstrings(tmp_path / "b", roots=roots, total=220, seed=1)
    a, b = ({row["name"]: row["split"] for row in lines(tmp_path / x / "functions.jsonl")} for x in "ab")
    assert set(a) != set(b) and len(a) == len(b) == 220
    assert all(a[name] == b[name] for name in set(a) & set(b))


def test_caps_hold(roots: dict[str, Path], tmp_path: Path) -> None:
    assert docstrings(tmp_path / "a", roots=roots, per_library=110)["functions"] == {"alpha": 110, "beta": 110}
    check(tmp_path / "a")


def test_a_whole_suite_is_not_made_again(
    suite: Path, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = docstrings(tmp_path / "a", roots=roots, per_library=110)
    with monkeypatch.context() as patch:
        patch.setattr(_scan, "scan", lambda *args, **named: pytest.fail("scanned again"))
        assert docstrings(tmp_path / "a", roots=roots, per_library=110) == first
    made = tree(tmp_path / "a")
    (tmp_path / "a" / "which" / "test.jsonl").unlink()  # a broken one is made again
    assert docstrings(tmp_path / "a", roots=roots, per_library=110) == first and tree(tmp_path / "a") == made
    assert docstrings(tmp_path / "a", roots=roots) == json.loads((suite / "manifest.json").read_text())  # other caps
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_changed_files_are_another_version(tmp_path: Path) -> None:
    (tmp_path / "lib.py").write_text("x = 1")
    first = _scan.version("lib", tmp_path)
    (tmp_path / "lib.py").write_text("x = 2")
    assert _scan.version("lib", tmp_path) != first


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"suite": "another"}'])
def test_nothing_of_others_is_written_over(content: str, roots: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="new or empty folder"):
        docstrings(tmp_path, roots=roots)
    assert tree(tmp_path) == {"manifest.json": content.encode()}


def test_wrong_requests_write_nothing(roots: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="per_library is a whole number"):
        docstrings(tmp_path / "a", roots=roots, per_library=0)
    with pytest.raises(InputError, match="there is no folder"):
        docstrings(tmp_path / "a", roots={"gamma": tmp_path / "gamma"})
    with pytest.raises(InputError, match="too few for the task 'library'"):
        docstrings(tmp_path / "a", roots=roots, total=20)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_what_was(roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docstrings(tmp_path / "a", roots=roots, per_library=110)
    before, write = tree(tmp_path / "a"), Path.write_text

    def full(self: Path, *args: Any, **named: Any) -> int:
        if self.name == "manifest.json":
            raise OSError(28, "No space left on device")
        return write(self, *args, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WorkError, match="No space left"):
        docstrings(tmp_path / "a", roots=roots)
    assert tree(tmp_path / "a") == before and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_counts_as_public(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    texts = {
        "__init__.py": "from ._impl import shown as seen\nfrom .core.frame import Frame\nfrom .deep import *\n" + BOOM,
        "_impl.py": 'def shown(x, *, y=2):\n    "One."\ndef kept(x):\n    "Two."\n',
        "core/__init__.py": "",
        "core/frame.py": """
class Frame:
    "Three."
    def __init__(self, data): ...
    def merge(self, right, how="left"):
        "Four."
    @property
    def shape(self):
        "Five."
    def _own(self):
        "Six."
""",
        "deep.py": '__all__ = ["six"]\ndef six(a, b):\n    "Seven."\ndef helper(a):\n    "Eight."\n',
        "tests/__init__.py": "",
        "tests/test_it.py": 'def test_it():\n    "Nine."\n',
        "externals/__init__.py": 'def borrowed():\n    "Ten."\n',
        "_docs.py": r"""
add_newdoc("tiny", "ufunc", "ufunc(x, /, out=None)\n\nEleven.")
add_docstr(tiny.linalg.inv, "inv(A, *, out=None) -> Tensor\n\nTwelve.")
add_newdoc("tiny", "grid", [("reset", "reset($self, /)\n--\n\nThirteen."), ("size", "Fourteen.")])
add_newdoc("tiny", "arange", "arange([start,] stop[, step,], dtype=None)\n\nFifteen.")
""",
        "broken.py": "def (:\n",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    found = functions(root)
    assert {name: (f.signature, f.params) for name, f in found.items()} == {
        "tiny.seen": ("shown(x, y=2)", ("x", "y")),
        "tiny.Frame": ("Frame(data)", ("data",)),
        "tiny.Frame.merge": ("Frame.merge(right, how='left')", ("right", "how")),
        "tiny.six": ("six(a, b)", ("a", "b")),
        "tiny.ufunc": ("ufunc(x, out=None)", ("x", "out")),
        "tiny.linalg.inv": ("inv(A, out=None)", ("A", "out")),
        "tiny.grid.reset": ("grid.reset()", ()),
        "tiny.arange": ("arange(start, stop, step, dtype=None)", ("start", "stop", "step", "dtype")),
    }
    assert found["tiny.Frame.merge"].file == "tiny/core/frame.py"


@pytest.mark.parametrize(
    ("doc", "summary"),
    [
        ("Sum of `a` over ``axis``.\n\nMore.", "Sum of a over axis."),
        ("dot(a, b) -> Tensor\n\nDot product of\ntwo arrays", "Dot product of two arrays."),
        ('See :func:`~torch.add` and :class:`Tensor <torch.Tensor>` for "more" [1]_.', "See add and Tensor for more."),
        ("Fill the ends (default: 0), e.g. with zeros. Other `x[0]` things. Third.", "Fill the ends, e.g. with zeros."),
        ("Plot $C_n$ and :math:`k` as in [the page](https://a.b/c).", "Plot C_n and k as in the page."),
        (".. note::\n    Beware of it.\n\nReturn the *best* row.", "Return the best row."),
        ("Parameters\n----------\nx : int", ""),
        ("* a list\n* of items", ""),
        (r"Solve :math:`\frac{a}{b}` for x.", ""),
    ],
)
def test_a_summary_reads_as_english(doc: str, summary: str) -> None:
    assert _prose.plain(_prose.summary(doc)) == summary


def test_the_parts_of_a_docstring() -> None:
    google = "Do it.\n\nIt is done twice. See this.\n\nArgs:\n    x (int): The `x` of it.\n    y: 1\n\nReturns:\n  A\n"
    field = "Do it.\n\n:param x: The *x* of it.\n:return: a list\n:raises ValueError: never\n"
    assert _prose.parse(google).sections == {"parameters", "returns"}
    assert _prose.parse(google).later == ("It is done twice.", "See this.")
    assert [_prose.plain(s) for s in _prose.parse(google).about] == ["The x of it."]
    assert _prose.parse(field).sections == {"parameters", "returns", "raises"}
    assert [_prose.plain(s) for s in _prose.parse(field).about] == ["The x of it."]
    assert _prose.parse("Do it.\n\nWarning\n-------\nDo not.\n\n>>> 1\n1\n").sections == {"warnings", "examples"}


def test_names_are_masked() -> None:
    def text(words: str, own: str, library: str = "scipy", file: str = "scipy/signal/_a.py") -> str:
        made = _scan.Function(library, file, f"scipy.signal.{own}", own, (), own, "")
        return _prose.plain(_mask.masker(["the sum"] * 11, ["alpha"])(made)(words))

    assert text("Like \x01hilbert\x02, a hilbert(x) of SciPy.", "hilbert") == "Like it, it of the library."
    assert text("The sum, by \x01sum\x02 or sum().", "sum") == "The sum, by it or it."
    assert text("Merge as Frame.merge does.", "Frame.merge") == "Merge as it does."
    assert text("A NumPy array as in numpy.linalg.svd.", "x") == "The library array as in svd."
    assert text("See scipy.signal, \x01torch\x02, alpha.", "x") == "See the library, the library, the library."
    assert text("Raises NetworkXError in from_pandas.", "x") == "Raises Error in from."
    assert text("Two transformers.", "x", "transformers") == "Two the library."
    assert text("Two transformers.", "x") == "Two transformers."


def test_tokens_are_parameters_and_values_where_the_docs_say_so() -> None:
    marked = "If \x01axis\x02 is \x01-1\x02 or None, \x01mode=full\x02 is \x01'same\x02."
    assert _mask.tagged(marked, ("axis", "mode")) == (
        ["If", "axis", "is", "-1", "or", "None", ",", "mode", "=", "full", "is", "same", "."],
        ["O", "B-param", "O", "B-value", "O", "B-value", "O", "B-param", "O", "O", "O", "B-value", "O"],
    )
    assert _mask.tagged("No \x01name\x02 of a parameter.", ("axis",)) is None
    assert _mask.tagged("The axis of \x01axis\x02.", ("axis",)) is None  # one of them is unmarked: O or not?
    assert _mask.tagged("At least 3 of \x01axis\x02.", ("axis",)) is None  # so is the number
    assert _mask.tagged("\x01a\x02 is a 2-D list.", ("a",)) is not None


def test_near_duplicates_are_found_and_kept_together() -> None:
    long = "one two three four five six seven eight nine ten"
    other = "one two three four five other words follow here"
    texts = [long, f"{long} eleven", other, "A short one.", "a SHORT one!", ""]
    assert _split.twins(texts) == [(0, 1), (3, 4)]
    files = [f"f{i}.py" for i in range(300)]
    alone = _split.split(files, [])
    assert 0.6 < alone.count("train") / 300 < 0.8 and alone.count("valid") < alone.count("test")
    tied = _split.split(files, [(i, i + 1) for i in range(0, 20, 2)])
    assert all(tied[i] == tied[i + 1] == alone[i] for i in range(0, 20, 2)) and tied[20:] == alone[20:]


def test_the_real_install(tmp_path: Path) -> None:
    """Three libraries that every install has, from their files: nothing of them is imported."""
    every, before = _scan.installed(), set(sys.modules)
    roots = {name: every[name] for name in ("numpy", "networkx", "python")}
    manifest = docstrings(tmp_path / "a", roots=roots, total=500)
    assert not {name for name in set(sys.modules) - before if name.startswith(("numpy", "networkx"))}
    check(tmp_path / "a")
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    names = r"(?i)\b(numpy|networkx|scipy|pandas|pytorch|sympy)\b"
    for task in ("library", "area", "sections", "arity", "same", "find"):
        for row in (row for split in SPLITS for row in lines(tmp_path / "a" / task / f"{split}.jsonl")):
            assert not re.search(names, f"{row['text']} {row.get('text_b', '')}"), row
            assert 5 <= len(row["text"].split()) <= 60
    asked = [row for split in SPLITS for row in lines(tmp_path / "a" / "find" / f"{split}.jsonl")]
    own = [(row["label"][0].rpartition(".")[2], row["text"]) for row in asked]
    assert not [(name, text) for name, text in own if "_" in name and re.search(rf"\b{name}\b", text)]
