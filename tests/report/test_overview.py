"""The overviews of merges and balances are those that methods, measurements and verdicts make now."""

import json
from pathlib import Path
from typing import Any

import pytest

from anabranch.core.names import every
from anabranch.report import overview

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", list(overview.pages()), ids=str)
def test_no_page_is_stale(path: Path) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == overview.pages()[path], "run: python -m anabranch.report.overview"


@pytest.mark.parametrize(("family", "text"), [("merge", overview.merging()), ("balance", overview.balancing())])
def test_every_method_has_a_line(family: str, text: str) -> None:
    for name in every(family):
        assert text.count(f"\n| `{name}` | ") >= 1, name
    for table in tables(text):
        assert len({row.replace("\\|", "").count("|") for row in table}) == 1, table[0]


def tables(text: str) -> list[list[str]]:
    parts = [part.splitlines() for part in text.split("\n\n")]
    return [part for part in parts if part[0].startswith("|")]


def test_what_a_method_asks_for_and_what_was_measured() -> None:
    merging, balancing = overview.merging(), overview.balancing()
    assert "means of x x^T over training rows" in next(r for r in merging.splitlines() if r.startswith("| `regmean`"))
    assert "tasks that share their texts" in next(r for r in balancing.splitlines() if r.startswith("| `rep_mtl`"))
    assert "several trainings" in next(r for r in balancing.splitlines() if r.startswith("| `stg_mtl`"))
    assert "### task-arithmetic" in merging and "| `task_arithmetic` | 0." in merging and "`upgrad`" in balancing


def test_write_leaves_fresh_pages_alone(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    assert overview.write(tmp_path) and not overview.write(tmp_path)


def cell(scores: list[float], ratio: float, **more: Any) -> dict[str, Any]:
    """Two tasks, one seed."""
    by_task = {k: dict(zip(("trec6", "sts"), [[v] for v in values], strict=True)) for k, values in more.items() if k == "scaled"}
    costs = {"ratio": ratio, "cpu": 10 * ratio, "seconds": 12 * ratio, "megabytes": 57.4, "kilobytes": 1234.0}
    return costs | {"scores": {"trec6": [scores[0]], "sts": [scores[1]]}} | by_task


def found(**methods: Any) -> dict[str, Any]:
    single = {"trec6": [0.8], "sts": [0.5]}
    machine = {
        "cpu": "a CPU",
        "cpus": 2,
        "threads": 1,
        "load": [0.5],
        "python": "3.11",
        "versions": {"torch": "2.13.0", "x": None},
    }
    return {
        "machine": machine, "load_after": 1.25, "seeds": [0], "few": 16, "rows": 512, "test_rows": 200, "valid_rows": 32,
        "data": "real tasks", "backbone": "minilm", "dtype": "bfloat16", "blocks": 2, "backbone_blocks": 6, "scales": [0.5, 1],
        "epochs": 3, "delta": "lora", "settings": {"atm": {"rounds": 3}}, "cpu_seconds": 600, "tasks": {"2": ["trec6", "sts"]},
        "single": {"2": single}, "untrained": {"2": {"trec6": [0.4], "sts": [0.0]}}, "skipped": {"slerp": "merges 2", "ties with 4 tasks": "merges 2"},
        "methods": methods,
    }  # fmt: skip


def test_side_by_side_the_highest_share_first(tmp_path: Path) -> None:
    merges = found(
        mean={"2": cell([0.4, 0.5], 1.0, scaled=[0.6, 0.5])},  # shares 0.5 and 1, scaled 0.75 and 1
        tsv={"2": cell([0.72, 0.5], 40.0, scaled=[0.72, 0.5])},  # 0.9 and 1
        tvq={"2": cell([0.8, 0.5], 2.0)},  # a model for each task, which keeps all
    )
    (tmp_path / "docs/speed").mkdir(parents=True)
    (tmp_path / "docs/speed/merges.json").write_text(json.dumps(merges), encoding="utf-8")
    text = overview.merging(tmp_path)
    rows = [row for row in text[text.index("## Side by side") :].splitlines() if row.startswith("| `")][:3]
    assert rows[0] == "| `tvq` † | - | 1.000 | 1.000 | - | 2.0 | 20.0 | 57 | 1,234 |"
    assert rows[1] == "| `tsv` | - | 0.950 | 0.900 | 0.950 | 40.0 | 400.0 | 57 | 1,234 |"
    assert rows[2] == "| `mean` | - | 0.750 | 0.500 | 0.875 | 1.0 | 10.0 | 57 | 1,234 |"
    assert "* 2 tasks: `tsv` 0.950, `tsv` 0.950" in text and "* `slerp`, `ties` with 4 tasks: merges 2" in text
    assert "Untouched f: 2 tasks 0.250" in text and "`atm` rounds 3" in text and "10 CPU minutes on a CPU" in text
    assert "## Side by side" not in overview.balancing(tmp_path)


def test_how_far_merges_are_from_the_peers(tmp_path: Path) -> None:
    cell = {"tensors": 103, "numbers": 22_713_216, "difference": 2.4e-7, "near": 2.4e-7, "change": 0.0123}
    cell |= {"apart": 0, "at_threshold": 0, "even": 0}
    parity = {
        "backbone": "minilm", "dtype": "float32", "rows": 300, "passes": 2, "near": 1e-5, "density": 0.3, "scale": 0.4,
        "scores": {"trec6": {"f": 0.13, "tuned": 0.905}},
        "found": {"mergekit": {"version": "0.1.5", "torch": "2.13.0", "methods": {
            "ties": cell | {"apart": 1234, "at_threshold": 1230, "even": 4}, "mean": cell}}},
    }  # fmt: skip
    assert "as the peers" not in overview.merging(tmp_path)
    (tmp_path / "docs/speed").mkdir(parents=True)
    (tmp_path / "docs/speed/parity.json").write_text(json.dumps(parity), encoding="utf-8")
    text = overview.merging(tmp_path)
    assert "| `ties` | mergekit | 103 | 22,713,216 | 0.012 | 1,234 | 1,230 | 4 | 2.4e-07 |" in text.splitlines()
    assert "mergekit 0.1.5 (TIES by tensor)" in text and "`trec6` 0.13 to 0.91" in text and "more than 1e-05" in text
    assert "as the peers" not in overview.balancing(tmp_path)


def test_side_by_side_of_balances_with_what_each_asks_for_and_how_far_the_best_is_from_equal() -> None:
    balances = found(equal={"2": cell([0.8, 0.4], 1.0)}, upgrad={"2": cell([0.8, 0.5], 1.25)}, samo={"2": cell([0.4, 0.4], 3.0)})
    parts = overview.side_by_side("balance", balances)
    text = "\n\n".join(parts)
    assert "| `upgrad` | - | 1.000 | 1.000 | 1.25 | 12.5 | 57 |" in text.splitlines()
    assert text.index("| `upgrad`") < text.index("| `equal`") < text.index("| `samo`")
    assert "* 2 tasks: `upgrad` 1.000, `equal` 0.900; difference +0.1000 (-1.1706 to +1.3706)" in text


def test_a_share_is_of_the_same_seed_and_needs_an_own_score_above_zero() -> None:
    single = {"a": [0.5, 1.0], "b": [0.2, -0.1]}
    assert overview.shares({"a": [0.25, 0.75], "b": [0.2, 0.2]}, single) == {"a": [0.5, 0.75]}
    assert overview.standing({"a": [0.25, 0.75], "b": [0.2, 0.2]}, single) == (0.625, 0.625)
