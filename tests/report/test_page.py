"""The results page is what its JSON makes now, and the JSON keeps the contract of results.json."""

import json
from pathlib import Path

from anabranch.report.page import page

FOLDER = Path(__file__).parents[2] / "docs" / "results"
KEYS = (
    "kind",
    "metric",
    "n_train",
    "n_valid",
    "n_test",
    "majority",
    "probe",
    "delta",
    "shared",
    "chosen",
    "valid",
    "test",
    "kilobytes",
    "seconds",
)


def results() -> dict:
    return json.loads((FOLDER / "tasks.json").read_text(encoding="utf-8"))


def test_the_page_is_not_stale() -> None:
    assert (FOLDER / "tasks.md").read_text(encoding="utf-8") == page(results()), "run: python speed/results.py"


def test_the_run_had_sixteen_tasks_and_every_kind_that_needs_no_causal_backbone() -> None:
    tasks = results()["tasks"]
    assert len(tasks) >= 16
    assert {t["kind"] for t in tasks.values()} == {"classify", "multilabel", "regress", "tag", "pair", "choice", "retrieve"}
    assert all(set(KEYS) <= set(t) for t in tasks.values())


def test_what_is_chosen_is_what_is_told() -> None:
    for name, t in results()["tasks"].items():
        assert t["test"] == t[t["chosen"]], name
