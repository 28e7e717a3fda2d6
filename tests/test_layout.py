"""The habits of the house: where things are, how long they may be, what they must say and must not do."""

import ast
import io
import json
import re
import statistics
import tokenize
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import anabranch
from anabranch.core.names import FAMILIES, every, find

REPO = Path(__file__).parents[1]
SRC = REPO / "src" / "anabranch"
# one paper, one file; the other families hold what the methods work on: backbones, benchmarks, applications
METHODS = FAMILIES[: FAMILIES.index("probe") + 1]
FILES = sorted(SRC.rglob("*.py"))
PUBLIC = [p for f in METHODS for p in sorted((SRC / f).glob("[!_]*.py"))]
QUIET = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
SOURCE = re.compile(
    r"[aA]r[xX]iv:? ?(\d{4}\.\d{4,5}|[a-z-]+/\d{7})|\bdoi\b"
    r"|\b([Tt]hesis|Journal|Proceedings|Transactions|Conference|Workshop|Press|Springer|Biometrika|Annals|Letters)\b"
    r"|\b(NeurIPS|NIPS|ICML|ICLR|ACL|EMNLP|NAACL|EACL|TACL|COLING|CoNLL|CVPR|ICCV|ECCV|WACV|AAAI|IJCAI|KDD|WWW|SIGIR|CIKM"
    r"|JMLR|TMLR|PMLR|COLT|UAI|AISTATS|MLSys|ICASSP|Interspeech|ICRA|CoRL|CoLLAs|COLM|PNAS|Nature|Science|IEEE|ACM)\b"
)
FOREIGN = re.compile(r"(?<![\w\])])[.]library\b|\bsteering (?:repo|session)|(?<![\w.-])/(?:work|root)/", re.IGNORECASE)


def name(path: Path) -> str:
    return str(path.relative_to(REPO))


def files(place: Path) -> Iterator[Path]:
    """All files under a folder but the caches of tools."""
    for path in place.rglob("*"):
        if path.is_file() and not re.search(r"/(\.\w+_cache|__pycache__)/", str(path)):
            yield path


def code_lines(source: str) -> int:
    """Lines that hold code: no blanks, no comments, no docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for t in tokens if t.type not in QUIET for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def lengths(paths: list[Path]) -> dict[str, int]:
    return {name(p): code_lines(p.read_text(encoding="utf-8")) for p in paths}


def over(limit: int, paths: list[Path]) -> dict[str, int]:
    return {file: n for file, n in lengths(paths).items() if n > limit}


def misdeeds(tree: ast.AST) -> Iterator[str]:
    """Calls and imports that no file of the package makes: pickles run code when read, prints bypass ``--json``."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield f"line {node.lineno}: print"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                yield f"line {node.lineno}: torch.load"
            case ast.keyword(arg="trust_remote_code" | "allow_pickle", value=ast.Constant(value=True)):
                yield f"line {node.value.lineno}: {node.arg}=True"
            case ast.Import(names=names) if {a.name.partition(".")[0] for a in names} & {"pickle", "dill"}:
                yield f"line {node.lineno}: pickle"
            case ast.ImportFrom(module="pickle" | "dill"):
                yield f"line {node.lineno}: pickle"


def test_code_lines_are_counted_without_blanks_comments_and_docstrings() -> None:
    source = '"""Doc\nof two."""\n\n# why\nx = """a\nb"""  # 2\n\ndef f():\n    "doc"\n    return (\n        x\n    )\n'
    assert code_lines(source) == 6


def test_misdeeds_are_seen() -> None:
    bad = "import pickle\nfrom dill import load\nprint(1)\ntorch.load(p)\nf(trust_remote_code=True, allow_pickle=True)\n"
    good = '"""print(1), import pickle"""\nconsole.print(1)\nf(trust_remote_code=False)\nimport torch\n'
    assert len(list(misdeeds(ast.parse(bad)))) == 6 and not list(misdeeds(ast.parse(good)))


def test_no_file_is_long() -> None:
    assert not over(300, FILES)


def test_core_is_small() -> None:
    core = sorted((SRC / "core").glob("*.py"))
    assert not over(199, core)
    assert sum(lengths(core).values()) < 1000, lengths(core)


def test_core_leans_on_nothing_else_of_the_package() -> None:
    pattern = re.compile(r"^\s*(?:from|import) anabranch\.(?!core\b|errors\b|settings\b|types\b)\S+", re.MULTILINE)
    found = {name(p): pattern.findall(p.read_text(encoding="utf-8")) for p in (SRC / "core").glob("*.py")}
    assert not {file: lines for file, lines in found.items() if lines}


@pytest.mark.parametrize("family", METHODS)
def test_methods_are_short(family: str) -> None:
    assert not over(100, list((SRC / family).glob("*.py")))
    methods = lengths([p for p in PUBLIC if p.parent.name == family])
    assert len(methods) < 5 or statistics.median(methods.values()) < 40, methods


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_a_folder_whose_files_hold_the_method_of_their_name(family: str) -> None:
    assert (SRC / family / "__init__.py").is_file()
    for method in every(family):
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", method), f"{family}/{method}.py is not lower snake case"
        found = find(f"{family}.{method}")
        assert not isinstance(found, types.ModuleType), f"{family}/{method}.py holds nothing named {method}"


def test_every_folder_of_the_package_has_an_init() -> None:
    assert not {name(p.parent) for p in FILES} - {name(p.parent) for p in SRC.rglob("__init__.py")}


@pytest.mark.parametrize("path", PUBLIC, ids=name)
def test_a_method_says_where_it_is_from(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    dated = re.search(r"\b(19|20)\d\d\b(?!\.\d)", doc) and SOURCE.search(doc)
    assert dated or "no paper" in doc.lower(), f"{name(path)}: give year and arXiv id or venue, or say 'no paper'"


@pytest.mark.parametrize("family", [*METHODS, "pretrain"])
def test_a_family_with_methods_has_its_laws(family: str) -> None:
    laws = [p for p in (REPO / "tests" / "laws").glob("*.py") if p.stem in (family, f"test_{family}")]
    walks = re.compile(rf"""\bevery\(\s*["']{family}["']""")
    assert not every(family) or any(walks.search(p.read_text(encoding="utf-8")) for p in laws), (
        f'no tests/laws/test_{family}.py that walks every("{family}")'
    )


def test_what_is_cited_is_in_the_catalogue() -> None:
    status = pytest.importorskip("anabranch.atlas.status", reason="no catalogue yet")
    known = {json.loads(line)["id"] for line in (SRC / "atlas" / "rows.jsonl").read_text("utf-8").splitlines()}
    assert not {row: list(map(name, by)) for row, by in status.cited().items() if row not in known}
    claims = {p.stem.replace("_", "-") for p in (SRC / "claims").glob("[!_]*.py")}
    verdicts = {p.stem for p in (SRC / "claims" / "verdicts").glob("*.json")}
    assert not {c for c in claims if not c.startswith("baseline-")} - known, "claims of no row"
    assert not verdicts - claims, "verdicts of no claim"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_misdeeds(path: Path) -> None:
    found = list(misdeeds(ast.parse(path.read_text(encoding="utf-8"))))
    cli = path == SRC / "cli.py"
    assert not [deed for deed in found if not (cli and deed.endswith("print"))]


def test_the_files_speak_of_the_project_alone() -> None:
    places = ["src", "tests", "speed", "docs", ".ci"]
    paths = [*(p for place in places for p in files(REPO / place)), *REPO.glob("*.*"), REPO / "Makefile"]
    texts = {name(p): p.read_text(encoding="utf-8", errors="replace") for p in paths if p.is_file()}
    assert not {file: found[0] for file, text in texts.items() if (found := FOREIGN.search(text))}


def test_the_changelog_knows_this_version() -> None:
    assert anabranch.__version__ in (REPO / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_wheel_holds_the_whole_package(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(REPO))
    with zipfile.ZipFile(next(wheel.build(directory=str(tmp_path), versions=["standard"]))) as built:
        held = {n for n in built.namelist() if n.startswith("anabranch/")}
    assert held == {str(p.relative_to(SRC.parent)) for p in files(SRC)}
