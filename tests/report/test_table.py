"""Tables say what the data says, in any width, and never take a user's words for markup."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from anabranch.errors import InputError, WorkError
from anabranch.report import table

TASK = {
    "kind": "classify", "metric": "accuracy", "n_train": 900, "n_valid": 100, "n_test": 300, "majority": 0.25, "probe": 0.75,
    "delta": 0.875, "shared": None, "chosen": "delta", "valid": 0.9, "test": 0.875, "kilobytes": 156.25, "seconds": 12.5,
}  # fmt: skip
RESULTS = {
    "format": 1, "seed": 7, "backbone": "minilm", "dtype": "bfloat16", "seconds": 1234.5, "stages": {"look": 1.0, "delta": 4.0},
    "tasks": {
        "intent": TASK,
        "mood [x]": TASK | {"metric": "r2", "majority": None, "probe": -0.5, "delta": None, "chosen": "probe", "test": -0.5},
    },
}  # fmt: skip


def text(shown: object, width: int = 100) -> str:
    console = Console(width=width, file=StringIO())
    console.print(shown)
    return console.file.getvalue()


def line(shown: str, start: str) -> list[str]:
    return next(found.split() for found in shown.splitlines() if found.startswith(start))


def test_results_mark_the_chosen_rung_and_draw_what_it_gained():
    shown = text(table.results(RESULTS))
    assert line(shown, "task") == ["task", "kind", "metric", "majority", "probe", "delta", "gain", "kB"]  # shared was not run
    bar = "█" * 10  # from 0.25 to 0.875 of 16
    assert line(shown, "intent") == ["intent", "classify", "accuracy", "0.250", "0.750", "0.875*", bar, "156.2"]
    assert line(shown, "mood [x]") == ["mood", "[x]", "classify", "r2", "–", "-0.500*", "–", "156.2"]  # no bar runs backwards
    assert "mean test score 0.188, tasks 2; * chosen on validation" in shown
    assert "seed 7, minilm, bfloat16, 1,234.5 s" in shown
    assert line(shown, "look") == ["look", "1.00", "█" * 4] and line(shown, "delta") == ["delta", "4.00", "█" * 16]


def test_results_repeat_what_is_odd_about_the_data():
    odd = RESULTS | {"tasks": {"intent": TASK | {"warnings": ["duplicates: 3 (first: a[0].csv, line 4)"]}}}
    assert "intent: duplicates: 3 (first: a[0].csv, line 4)" in text(table.results(odd))


def test_a_gate_tells_how_much_of_each_slot_a_task_takes():
    gates = {
        "measure": "mean weight",
        "tasks": ["intent", "mood [x]"],
        "slots": ["slot 1", "slot 2"],
        "weights": [[0.75, 0.25], [0, 1]],
    }
    shown = text(table.results(RESULTS | {"gates": gates}))
    assert line(shown, "weights") == ["weights", "slot", "1", "slot", "2"] and "mean weight" in shown
    assert "weights" not in text(table.results(RESULTS))
    rows = [found.split() for found in shown.splitlines() if found.startswith(("intent", "mood"))][-2:]
    assert rows == [["intent", "0.750", "0.250"], ["mood", "[x]", "0.000", "1.000"]]


def test_of_many_slots_a_task_shows_those_that_it_uses_most():
    slots, weights = [f"e{i}" for i in range(20)], [0.004] * 18 + [0.2, 0.728]
    gates = {"measure": "mean weight", "tasks": ["intent"], "slots": slots, "weights": [weights]}
    assert table.most_used(weights, slots) == [("e19", 0.728), ("e18", 0.2)]
    assert "e19 0.73, e18 0.20" in text(table.results(RESULTS | {"gates": gates}))


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_numbers_survive_a_narrow_terminal(width: int):
    shown = text(table.results(RESULTS), width)
    assert max(map(len, shown.splitlines())) <= width
    for number in ("0.250", "0.750", "0.875*", "156.2") if width >= 60 else ():
        assert number in shown


def test_a_run_says_where_its_parts_are(tmp_path: Path):
    shown = text(table.run(RESULTS, Path("out")))
    assert line(shown, "bundle") == ["bundle", "out/bundle"] and line(shown, "report")[-1] == "out"
    (tmp_path / "report.html").touch()
    assert str(tmp_path / "report.html") in text(table.run(RESULTS, tmp_path), 300)


def test_a_run_is_read_from_its_results(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert table.read(tmp_path) == RESULTS


def test_no_run_and_an_unfinished_run_are_wrong_requests(tmp_path: Path):
    with pytest.raises(InputError, match="not a finished run"):
        table.read(tmp_path / "nowhere")
    (tmp_path / "plan.json").touch()
    with pytest.raises(InputError, match=f"anabranch fit PLAN --out {tmp_path} --resume"):
        table.read(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"tasks": 3}', b"{}", b"null"])
def test_damaged_results_are_named(tmp_path: Path, content: bytes):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(WorkError, match=r"results\.json is damaged"):
        table.read(tmp_path)


def test_a_dry_run_says_what_is_to_come():
    expected = {"train": 900, "valid": 100, "test": 200, "kind": "classify"}
    shown = text(table.dry(
        {"rows": 12345, "minutes": 0.5, "megabytes": 81.2, "tasks": {"a": expected}, "stages": {"probe": 0.25, "delta": 2.0}}
    ))  # fmt: skip
    assert line(shown, "task") == ["task", "train", "valid", "test", "kind"]
    assert line(shown, "a") == ["a", "900", "100", "200", "classify"]
    assert line(shown, "probe") == ["probe", "0.25", "██"]
    assert "12,345 rows, about 0.5 minutes and 81.2 MB" in shown


def test_a_merge_is_set_beside_the_single_deltas():
    tasks = {"a": {"single": 0.9, "merged": 0.8}, "b": {"single": 0.5, "merged": 0.75}}
    shown = text(table.merged({"tasks": tasks, "mean_single": 0.7, "mean_merged": 0.775, "kilobytes_saved": 155.0}))
    assert line(shown, "a")[:4] == ["a", "0.900", "0.800", "-0.100"]
    assert line(shown, "b") == ["b", "0.500", "0.750", "+0.250", "█" * 12]
    assert line(shown, "mean") == ["mean", "0.700", "0.775", "+0.075"]
    assert "155.0 kB saved" in shown
    stored = {"tasks": tasks, "mean_single": 0.7, "mean_merged": 0.775, "kilobytes_saved": 155.0, "bundle": "run/merged"}
    assert "155.0 kB saved, in run/merged" in text(table.run(stored, Path("run/merged")))


def test_an_evaluation_is_one_line_a_task():
    shown = text(table.evaluated({"a": {"metric": "mcc", "score": 0.5, "rows": 1200}}))
    assert line(shown, "a") == ["a", "mcc", "1,200", "0.500", "█" * 8]


def test_a_check_places_every_problem():
    counts = dict.fromkeys(("missing", "empty", "long", "conflicts", "leaks", "unseen"), 0)
    good = counts | {"duplicates": 2, "kind": "classify", "labels": 3, "rows": {"train": 70, "valid": 10, "test": 20}}
    bad = {"kind": None, "labels": None, "rows": None, "warnings": []}
    place = {"file": "b[1].csv", "line": 3, "column": "label", "message": "expected 2 fields"}
    shown = text(table.checked({
        "ok": False, "problems": 1, "plan": [],
        "tasks": {"a": good | {"warnings": ["duplicates: 2"], "problems": []}, "b": bad | {"problems": [place]}},
    }), 120)  # fmt: skip
    assert line(shown, "a ") == ["a", "classify", "3", "70", "10", "20", "0", "0", "0", "2", "0", "0", "0", "0"]
    assert line(shown, "b ") == ["b", *"–" * 12, "1"]
    assert "a: duplicates: 2" in shown and "b: b[1].csv, line 3, column label: expected 2 fields" in shown
    assert shown.rstrip().endswith("problems: 1")


def test_a_broken_plan_is_a_problem_without_tasks():
    problem = {"file": "p.yaml", "line": 2, "column": None, "message": "broken YAML"}
    shown = text(table.checked({"ok": False, "problems": 1, "plan": [problem], "tasks": {}}))
    assert "p.yaml, line 2: broken YAML" in shown
    fine = text(table.checked({"ok": True, "problems": 0, "plan": [], "tasks": {}}))
    assert fine.strip() == "no problems"


def test_a_change_shows_results_where_there_are_scores():
    assert "0.875*" in text(table.changed(RESULTS))
    assert line(text(table.changed({"removed": "a", "tasks": ["b", "c"]})), "tasks") == ["tasks", "b,", "c"]
    assert line(text(table.changed({"file": "x[red]y", "left": {"b": 1}})), "file") == ["file", "x[red]y"]


def test_answers_stand_under_their_questions():
    shown = text(table.answers([{"text": "sort it [now]", "library": "numpy", "functions": ["a.b", "c.d"]}]))
    assert [found.split() for found in shown.splitlines() if found] == [
        ["sort", "it", "[now]"], ["library", "numpy"], ["functions", "a.b,", "c.d"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.5, "0.500"), (1.0, "1.000"), (-1.5, "-1.5"), (1234.56, "1,234.6"), (1234, "1,234"), (True, "True")],
)
def test_numbers_are_short(value: object, shown: str):
    assert table.number(value) == shown
