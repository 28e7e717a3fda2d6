"""The page of speed is what its measurements make now; bounds are judged by the numbers, and what is absent is said."""

import json
import math
from pathlib import Path

import pytest

from anabranch.report import speed
from anabranch.report.speed import Line, page, read, write

ROOT = Path(__file__).parents[2]


def ratio(median: float) -> dict:
    return {"least": median, "median": median, "low": median - 0.1, "high": median + 0.1}


def machine(**versions: str | None) -> dict:
    return {
        "cpu": "a CPU", "cpus": 2, "threads": 1, "load": [0.5, 0, 0], "gigaflops": {"float32": 100, "bfloat16": 400},
        "python": "3.11", "versions": {"anabranch": None, "torch": "2.13.0"} | versions,
    }  # fmt: skip


def results() -> dict:
    """A little of what every script finds."""
    facts, accuracy = {"machine": machine(), "load_after": 1.0}, {"ours": {"mean": 0.9}, "peer": {"mean": 0.91}}
    cell = {"ms": {"ours": 1.0}, "of_ceiling": {"ours": 0.7, "peer": 0.6}, "ours/f": ratio(1.2)}
    cell |= {"ours/sdpa": ratio(1.3), "peer/sdpa": ratio(1.4)}
    gate = {"arrow/one": ratio(1.55), "keyed/one": ratio(1.7), "of_ceiling": {"arrow": 0.4, "keyed": 0.5}}
    timed = {"times_as_fast": ratio(11), "of_ceiling": 0.05}
    balanced = {"ms": {"plain_separate": 200.0}, "of_ceiling": 0.4, "slot_separate": ratio(1.0), "ours_separate": ratio(1.2)}
    shared = {"ms": {"plain_shared": 200.0}, "of_ceiling": 0.4, "features_shared": ratio(1.2), "exact_shared": ratio(2.5)}
    return {
        "fit": facts | {
            "faster": {"peer": ratio(2.5), "peer fp32": ratio(7)}, "training_faster": {"peer": ratio(3.2), "peer fp32": ratio(6)},
            "rows_per_second": {"ours": 480, "peer": 150, "peer fp32": 80}, "of_ceiling": {"ours": 0.5, "peer": 0.25},
            "accuracy": accuracy | {"our probe": {"mean": 0.8}}, "seeds": [0, 1], "settings": ["--seeds", "0,1"],
        },
        "fewshot": facts | {"faster": ratio(6), "gain": 0.03, "half_interval": None,
                            "accuracy": {"ours": {"sst2": 0.7, "cr": 0.8}, "our probe": {"sst2": 0.6, "cr": 0.7}}},
        "mixed": facts | {"rows": 64, "cells": {"fp32 T64 distinct64": cell, "fp32 T64 distinct1": cell}, "experts": 64, "top": 2,
                          "gates": {"fp32": gate}},
        "merge": facts | {"machine": machine(mergekit=None) | {"ceiling": 5.0}, "found": {
            "ties": {"file": timed, "folder": timed, "differs": {"float32": {"file": 0.0, "folder": 2e-5}, "bfloat16": 0.11}},
            "dare_ties": {"file": timed, "folder": timed | {"times_as_fast": {}}, "differs": {
                "float32": {"file": 1.0, "folder": 1.0, "by seed": 0.99}, "bfloat16": 1.0}},
        }},
        "balance": facts | {"cells": {"separate 16": balanced, "shared 8": shared | {"torchjd_shared": ratio(4.8)}}},
        "serve": facts | {"tasks": 64, "many": 512, "rows": [16, 1], "clients": 32, "ratios": {
            "server / offline": ratio(0.86), "many / one": ratio(0.8), "server / peer float32": ratio(5.2)}},
        "soak": facts | {
            "requests": 1000, "answers": 3000, "wrong": 0, "errors": 1, "changes": 24, "crowd": None,
            "memory_mb": {"quarter": 1000.0, "last": 1010.0}},
        "load": facts | {
            "tasks": {"1": {"each": [0.2, 0.1]}, "500": {"each": [1.0, 1.2, 2.5]}}, "limit_seconds": 2.0,
            "peer_adapters": {"64": {"each": [9.0]}}, "faster_at_equal_number": {"64": 30.0}, "faster_per_task": {"64": 75.0}, "kilobytes_per_task": 180.0,
            "peer_kilobytes_per_adapter": {"64": 310.0},
        },
        "scale": facts | {
            "fits": [{"tasks": 1, "rows": 8192, "seconds_per_task": 40.0}], "ratios": {"1": {}, "512": {
                "training_ms_per_row": 1.5, "ms_per_row": 1.8}},
            "memory": {"tasks": 64, "rows": 64000, "peak_gb": 1.4},
            "ready": {"tasks": 500, "seconds": 1.0, "many/one": ratio(1.25), "bytes_per_task": 154000},
        },
    }  # fmt: skip


def test_the_page_is_not_stale() -> None:
    if not read():
        pytest.skip("not measured yet: make speed")
    assert (ROOT / speed.PAGE).read_text(encoding="utf-8") == page(read()), "run: python -m anabranch.report.speed"


@pytest.mark.parametrize(
    ("line", "met", "said"),
    [
        (Line("a", 3.0, least=3), True, "| a | 3 |  |  | at least 3 | yes |"),
        (Line("a", ratio(2.999), least=3, goal=4), False, "| a | 3 | 2.9 to 3.1 |  | at least 3, goal 4 | **no** |"),
        (Line("a", 1e-6, most=1e-5, share=0.456), True, "| a | 1e-06 |  | 46% | at most 1e-05 | yes |"),
        (Line("a", -0.01, least=0), False, "| a | -0.01 |  |  | at least 0 | **no** |"),
        (Line("a", 0.01, most=0), False, "| a | 0.01 |  |  | at most 0 | **no** |"),
        (Line("a", 1234.5), None, "| a | 1,234 |  |  |  |  |"),
        (Line("a", None, least=0), None, "| a | - |  |  | at least 0 | not measured |"),
        (Line("a", math.nan, least=0), None, "| a | - |  |  | at least 0 | not measured |"),
    ],
)
def test_a_line_is_judged_by_its_number(line: Line, met: bool | None, said: str) -> None:
    assert line.met is met and line.row() == said


@pytest.mark.parametrize(
    "row",
    [
        "| end to end, PEFT + Trainer in bf16 / ours | 2.5 | 2.4 to 2.6 |  | at least 3, goal 4 | **no** |",
        "| end to end, PEFT + Trainer in fp32 / ours | 7 | 6.9 to 7.1 |  | at least 6, goal 8 | yes |",
        "| mean test accuracy, ours less PEFT + Trainer in bf16 | -0.01 |  |  | at least 0 | **no** |",
        "| the low end of its 95 % interval | - |  |  | at least 0 | not measured |",
        "| mean test accuracy, ours | 0.75 |  |  |  |  |",
        "| fp32, 64 slots, 64 in the batch: ours / f | 1.2 | 1.1 to 1.3 | 70% | at most 1.3, goal 1.15 | yes |",
        "| fp32, 64 slots, 1 in the batch: ours / f | 1.2 | 1.1 to 1.3 | 70% |  |  |",
        "| fp32, 64 slots, 1 in the batch: ours / f as PEFT loads it | 1.3 | 1.2 to 1.4 |  | at most 1.4 | yes |",
        "| fp32, top 2 of 64 experts by token (`arrow`) / one expert | 1.55 | 1.45 to 1.65 | 40% | at most 1.6 | yes |",
        "| fp32, top 2 of 64 experts by row (`keyed`) / one expert | 1.7 | 1.6 to 1.8 | 50% |  |  |",
        "| `ties`, a mergekit file: mergekit / ours | 11 | 10.9 to 11.1 | 5% | at least 10 | yes |",
        "| `dare_ties`, folders: mergekit / ours | - |  | 5% | at least 4 | not measured |",
        "| `ties`, folder: differs from mergekit's in fp32 | 2e-05 |  |  | at most 1e-05 | **no** |",
        "| `dare_ties`, file: differs from mergekit's in fp32 (ours with another seed: 0.99) | 1 |  |  |  |  |",
        "| 16 tasks, separate inputs: balanced / plain step | 1.2 | 1.1 to 1.3 |  | at most 1.15 | **no** |",
        "| 8 tasks, shared inputs: balanced at the features / TorchJD | 0.25 |  |  | at most 0.5 | yes |",
        "| rows/s / FastAPI + PEFT in float32, 32 clients, 16 a request | 5.2 | 5.1 to 5.3 |  | at least 5 | yes |",
        "| 500 tasks ready, seconds | 1.2 | 1 to 2.5 |  | at most 2 | yes |",
        "| seconds a task, PEFT of 64 / ours of 500 | 75 |  |  |  |  |",
        "| training a row, 512 tasks / 1 | 1.5 |  |  | at most 1.25 | **no** |",
    ],
)
def test_every_script_has_its_rows(row: str) -> None:
    assert row in page(results()).splitlines()


def test_gates_are_told_with_their_delta_and_tasks() -> None:
    """Of every way that was measured; a result from before ways were told (above) has two."""
    found = results()["mixed"]
    ways = {
        "task_aware": {
            "delta": "lora",
            "gate": "task_aware",
            "settings": {"top": 2, "slots": 64},
            "experts": 64,
            "one": "one",
            "tasks": 64,
        },
        "adapters": {
            "delta": "adapter",
            "gate": "task_aware",
            "settings": {"top": 1},
            "experts": 16,
            "one": "one adapter",
            "tasks": 1,
        },
    }
    cell = {f"{name}/{way['one']}": ratio(1.7) for name, way in ways.items()} | {"of_ceiling": dict.fromkeys(ways, 0.3)}
    lines = page({"mixed": found | {"ways": ways, "gates": {"bf16": cell}}}).splitlines()
    of_tasks = "bf16, top 2 of 64 experts by token (`task_aware`, rows of 64 tasks) / one expert"
    assert f"| {of_tasks} | 1.7 | 1.6 to 1.8 | 30% | at most 1.6 | **no** |" in lines
    adapters = "bf16, top 1 of 16 `adapter` experts by token (`task_aware`) / one `adapter` expert"
    assert f"| {adapters} | 1.7 | 1.6 to 1.8 | 30% |  |  |" in lines


def test_the_summary_counts_what_was_judged() -> None:
    lines = page(results()).splitlines()
    assert "| `speed/serve.py` | 3 | 2 | rows/s with 512 tasks / with 1: 0.8 |" in lines
    assert "| `speed/load.py` | 1 | 1 | - |" in lines


def test_how_it_was_measured_and_what_was_absent_are_said() -> None:
    text = page({name: results()[name] for name in ("fit", "merge")})
    assert "`python speed/fit.py --seeds 0,1` (seeds 0, 1), on a CPU, cores 2, threads 1, load 0.5 before and 1 after" in text
    assert "reads and writes 5 GB/s. Python 3.11, torch 2.13.0. Without mergekit (not installed)." in text
    assert "Not measured yet: `speed/fewshot.py`, `speed/mixed.py`" in text and "anabranch None" not in text


def test_writing_needs_a_measurement(tmp_path: Path) -> None:
    assert write(tmp_path) is None
    (tmp_path / speed.FOLDER).mkdir(parents=True)
    (tmp_path / speed.FOLDER / "serve.json").write_text(json.dumps(results()["serve"]), encoding="utf-8")
    path = write(tmp_path)
    assert path is not None and path.read_text(encoding="utf-8") == page(read(tmp_path))
