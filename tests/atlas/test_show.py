"""What the command shows: everything that is known of a row, as data and as text."""

import io
import json

import pytest
from rich.console import Console

from anabranch.atlas import status
from anabranch.atlas.rows import rows
from anabranch.atlas.show import chart, facts, found, method, numbers, overview, show
from anabranch.core.names import FAMILIES, make
from anabranch.errors import InputError

VERDICT = {
    "verdict": "not held",
    "test": "paired t",
    "margin": 0.01,
    "seeds": [0, 1, 2],
    "difference": {"mean": 0.06, "low": 0.03, "high": 0.09},
    "arms": {
        "ties": {"mean": 0.9, "interval": [0.88, 0.92]},
        "task arithmetic": {"mean": 0.84, "low": 0.8, "high": 0.86},
        "one": {"mean": 0.8},
    },
}


def text(renderable: object, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in (*FAMILIES, "claims/verdicts"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(status, "HOME", tmp_path)
    (tmp_path / "merge/twin_merging.py").write_text(
        '"""Twin-Merging (2024).\n\n    d = sum_t w_t v_t        a sum\n      over t\n\n``rank``: r.\n"""\n\n'
        'rows = ("twin-merging",)\n\n\ndef twin_merging(rows, site=None, *, rank: int = 16, own: bool = True): ...\n'
    )
    return tmp_path


def test_a_missing_row_says_what_is_to_be_built():
    data = show("glance-or-gaze", json=True)
    page = text(show("glance_or_gaze"))
    assert data["status"] == "missing" and data["methods"] == [] and data["verdict"] is None
    for words in ("Glance-or-Gaze", "missing", "idea", "to build", "claim", "against"):
        assert words in page
    assert "verdict" not in page and json.dumps(data)


def test_a_row_with_everything(home):
    (home / "claims/twin_merging.py").touch()
    (home / "claims/verdicts/twin-merging.json").write_text(json.dumps(VERDICT))
    data, page = show("twin-merging", json=True), text(show("twin-merging"))
    assert data["status"] == "not held" and data["verdict"] == VERDICT
    assert data["claim_file"] == "claims/twin_merging.py"
    assert data["methods"] == [
        {
            "method": "merge.twin_merging",
            "kind": "function",
            "name": "twin_merging",
            "equation": "d = sum_t w_t v_t        a sum\n  over t",
            "settings": {"rank": "16", "own": "True"},
            "usage": "merge: {twin_merging: {rank: 16, own: true}}",
        }
    ]
    for words in (
        "d = sum_t w_t v_t",
        "rank: 16",
        "anabranch claim twin-merging",
        "not held",
        "0.9",
        "[0.8, 0.86]",
        "●",
    ):
        assert words in page


def test_every_page_is_printable():
    for r in rows():
        assert r.id in text(show(r.id)), r.id


def test_unknown_row():
    with pytest.raises(InputError, match="did you mean twin-merging"):
        show("twin-mergin")


def test_a_class_and_its_fields(home):
    path = home / "gate/by_task.py"
    path.write_text(
        '"""No indented line."""\n\n@dataclass\nclass ByTask(Gate):\n'
        '    """Doc.\n\n        w = 1\n\n    More.\n    """\n'
        "    top: Count = 2\n    plain: ClassVar[bool] = True\n    shape: Shape = Shape(2)\n    needed: int\n"
    )
    shown = method(path)
    assert (shown["kind"], shown["name"], shown["equation"]) == ("class", "ByTask", "w = 1")
    assert shown["settings"] == {"top": "2", "shape": "Shape(2)"}
    assert shown["usage"] == "gate: {by_task: {top: 2}}"
    path.write_text("")
    assert method(path) | {"kind": "module", "equation": "", "usage": "gate: by_task"} == method(path)


def test_outside_of_plans_python_is_shown(home):
    path = home / "probe/cka.py"
    path.write_text("def cka(a, b): ...\n")
    assert method(path)["usage"] == "import anabranch as ab\n\nab.probe.cka"


def test_the_snippets_of_this_package_are_plans_that_work():
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("torch")
    methods = [method(p) for f in ("delta", "gate", "merge", "balance") for p in (status.HOME / f).glob("[!_]*.py")]
    assert methods
    for shown in methods:
        family, name = shown["method"].split(".")
        spec = yaml.safe_load(shown["usage"])[family]
        assert spec == name or list(spec) == [name]
        if isinstance(spec, dict):
            make(family, spec)  # the settings exist, and their defaults are in range


def test_numbers_are_found_wherever_they_are():
    assert numbers(VERDICT) == [
        (("difference",), 0.06, 0.03, 0.09),
        (("arms", "ties"), 0.9, 0.88, 0.92),
        (("arms", "task arithmetic"), 0.84, 0.8, 0.86),
        (("arms", "one"), 0.8, 0.8, 0.8),
    ]
    assert numbers({"verdict": "held"}) == [] and numbers({"mean": 1}) == [(("mean",), 1, 1, 1)]
    assert facts(VERDICT) == "test paired t, margin 0.01"


def test_siblings_share_an_axis_and_a_difference_has_zero_on_its_own():
    assert chart(VERDICT, width=13).splitlines() == [
        "difference           0.06  [0.03, 0.09]  ····────●────",
        "ties                  0.9  [0.88, 0.92]  ········──●──",
        "task arithmetic      0.84  [0.8, 0.86]   ────●──······",
        "one                   0.8  [0.8, 0.8]    ●············",
    ]
    assert chart({"d": {"mean": -1, "interval": [-2, 0]}}, width=5).endswith("──●──")
    assert chart({"d": {"mean": 0}}, width=5).endswith("●····")
    assert chart({"verdict": "held"}) == ""


def test_the_overview_counts():
    shown = text(overview())
    assert "merge" in shown and "not held" in shown and "398" in shown


def test_found_as_table_and_data():
    data = found("grid beam search", json=True, k=3)
    assert data["rows"][0]["id"] == "grid-beam-search" and len(data["rows"]) == 3
    assert {"id", "title", "family", "status", "score"} <= set(data["rows"][0])
    assert "grid-beam-search" in text(found("grid beam search"))
    assert text(found("grid beam search"), width=60)
