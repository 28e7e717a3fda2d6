"""The overviews of merges and balancers are those that methods and verdicts make now."""

from pathlib import Path

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
    for row in text.splitlines():
        assert not row.startswith("|") or row.replace("\\|", "").count("|") in (5, 6), row


def test_what_a_method_asks_for_and_what_was_measured() -> None:
    merging, balancing = overview.merging(), overview.balancing()
    assert "means of x x^T over training rows" in next(r for r in merging.splitlines() if r.startswith("| `regmean`"))
    assert "tasks that share their texts" in next(r for r in balancing.splitlines() if r.startswith("| `rep_mtl`"))
    assert "several trainings" in next(r for r in balancing.splitlines() if r.startswith("| `stg_mtl`"))
    assert "### task-arithmetic" in merging and "| `task_arithmetic` | 0." in merging and "`upgrad`" in balancing


def test_write_leaves_fresh_pages_alone(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    assert overview.write(tmp_path) and not overview.write(tmp_path)
