"""The page of deltas is what its measurements make now; choices are among those as good as the best."""

import json
from pathlib import Path

import pytest

from anabranch.report.deltas import PAGE, SOURCE, as_good, page, write

ROOT = Path(__file__).parents[2]
TASKS = ["trec6", "sst2", "subj"]


def delta(at_16: list[float], kilobytes: float, rate: float, overhead: float, **more: object) -> dict:
    return {
        "settings": {"rank": 8}, "at": ["attention.query", "attention.value"], "door": "site", "lr": 5e-3, "numbers": 24576,
        "common": 0, "kilobytes": kilobytes, "rows_per_second": rate, "overhead": {"median": overhead}, "through_all_of_f": False,
        "scores": {"16": {n: [v] for n, v in zip(TASKS, at_16, strict=True)}, "1000": {"trec6": [0.9], "sst2": [0.8]}},
    } | more  # fmt: skip


def found() -> dict:
    deltas = {
        "lora": delta([0.6, 0.8, 0.7], 49.152, 400, 1.1),
        "offset": delta([0.5, 0.85, 0.72], 13.824, 450, 1.05),  # lower in the mean, by less than the tasks vary
        "prompt": delta([0.5, 0.7, 0.6], 6.144, 90, 1.26, through_all_of_f=True, common=100),  # a tenth lower at each task
    }
    machine = {
        "cpu": "a CPU",
        "cpus": 2,
        "threads": 2,
        "load": [0.5],
        "python": "3.11",
        "versions": {"torch": "2.13.0", "x": None},
    }
    return {
        "data": "real tasks", "seeds": [0], "steps": 16, "blocks": 2, "backbone": "minilm", "dtype": "bfloat16",
        "backbone_blocks": 6, "test_rows": 200, "batch": 64, "length": 32, "cpu_seconds": 600, "load_after": 1.25,
        "passes": {"16": 16, "1000": 1}, "tasks": {"16": TASKS, "1000": TASKS[:2]}, "machine": machine, "deltas": deltas,
        "probe": {"16": {n: [0.5] for n in TASKS}, "1000": {n: [0.75] for n in TASKS[:2]}},
        "skipped": {"masked_common": "a form in which merges store slots"},
    }  # fmt: skip


def test_the_page_is_not_stale() -> None:
    if not (ROOT / SOURCE).exists():
        pytest.skip("not measured yet: python speed/deltas.py")
    measured = json.loads((ROOT / SOURCE).read_text(encoding="utf-8"))
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(measured), "run: python -m anabranch.report.deltas"


def test_as_good_as_the_best_is_what_the_interval_does_not_part() -> None:
    assert list(as_good("16", found()["deltas"])) == ["lora", "offset"]
    assert list(as_good("1000", found()["deltas"])) == ["lora", "offset", "prompt"]  # equal everywhere


def test_the_cheapest_of_the_good_is_named_by_each_cost() -> None:
    lines = page(found()).splitlines()
    assert "| the highest mean score | `lora` | `lora` |" in lines
    assert "| the fewest kilobytes | `offset` | `prompt` |" in lines
    assert "| the fastest training | `offset` | `offset` |" in lines
    assert "| the least overhead in a mixed batch | `offset` | `offset` |" in lines


def test_every_delta_has_its_row_and_what_was_not_measured_its_reason() -> None:
    text = page(found())
    assert "| `lora` | 24,576 | 49.2 | 400 | 1.10 | **0.700** | **0.850** |" in text
    assert "| `prompt` † | 24,576 + 100 | 6.1 | 90 | 1.26 | 0.600 | **0.850** |" in text
    assert "| probe, no delta | 0 | 0.0 |  | 1.00 | 0.500 | 0.750 |" in text
    assert "* `masked_common`: a form in which merges store slots" in text
    assert "16 (3 tasks, 16 passes), 1,000 (2 tasks, 1 pass)" in text and "`trec6`, `sst2`, `subj`" in text
    assert "10 CPU minutes on a CPU (cores 2, threads 2), load 0.5 to 1.2; python 3.11, torch 2.13.0." in text


def test_writing_needs_the_measurements(tmp_path: Path) -> None:
    assert write(tmp_path) is None
    (tmp_path / SOURCE).parent.mkdir(parents=True)
    (tmp_path / SOURCE).write_text(json.dumps(found()), encoding="utf-8")
    path = write(tmp_path)
    assert path is not None and path.read_text(encoding="utf-8") == page(found())
