"""A costlier rung only on evidence: one standard error of a paired difference on validation."""

import types
from typing import Any

import pytest
import torch

from anabranch.engine.choose import Rung, better, choose
from anabranch.task import kind as kinds


def job(labels: list[int], metric: str = "accuracy") -> Any:
    return types.SimpleNamespace(
        parts={"valid": types.SimpleNamespace(labels=labels)}, kind=kinds.find("classify")(["a", "b"]), metric=metric
    )


def rung(name: str, truth: list[int], right: int, losses: list[float] | None = None) -> Rung:
    """A rung that answers the first ``right`` rows rightly."""
    pred = [y if i < right else 1 - y for i, y in enumerate(truth)]
    scores = [[float(p == c) for c in (0, 1)] for p in pred]
    return Rung(name, {}, valid=right / len(truth), found=(pred, scores), losses=torch.tensor(losses or []))


TRUTH = [0, 1] * 50


@pytest.mark.parametrize(
    ("old", "new", "taken"), [(50, 100, True), (100, 50, False), (80, 80, False), (90, 95, True), (90, 91, False)]
)
def test_the_metric_decides_beyond_one_standard_error(old, new, taken):
    """90 -> 91 of 100: the difference is one row, its standard error too."""
    assert better(job(TRUTH), rung("delta", TRUTH, new), rung("probe", TRUTH, old)) is taken


@pytest.mark.parametrize(("saved", "taken"), [([0.1] * 100, True), ([-0.1] * 100, False), ([0.0] * 100, False), ([5.0] + [-0.04] * 99, False),
                                              ([0.3, -0.1] * 50, True), ([float("nan")] * 100, False)])  # fmt: skip
def test_the_log_loss_decides_where_the_metric_cannot(saved, taken):
    old, new = rung("probe", TRUTH, 90, [1.0] * 100), rung("delta", TRUTH, 90, [1.0 - s for s in saved])
    assert better(job(TRUTH), new, old) is taken


def test_no_evidence_keeps_the_cheaper():
    blind = Rung("delta", {})
    assert not better(job([]), blind, Rung("probe", {}))
    first = rung("delta", TRUTH, 100), rung("probe", TRUTH, 92)
    assert better(job(TRUTH), *first) and better(job(TRUTH), *first, errors=2.0) and not better(job(TRUTH), *first, errors=9.0)
    assert not better(job([1]), rung("delta", [1], 1, [0.0]), rung("probe", [1], 0, [9.0]))
    assert not better(job([1, 0]), rung("delta", [1, 0], 1), blind)


def test_the_ladder_is_climbed_one_rung_at_a_time():
    probe, shared, delta = rung("probe", TRUTH, 50), rung("shared", TRUTH, 80), rung("delta", TRUTH, 80)
    assert choose(job(TRUTH), [probe, shared, delta]).name == "shared"
    assert choose(job(TRUTH), [probe, shared, rung("delta", TRUTH, 99)]).name == "delta"
    assert choose(job(TRUTH), [probe, rung("shared", TRUTH, 20), rung("delta", TRUTH, 51)]).name == "probe"
    assert choose(job(TRUTH), [probe]).name == "probe"


def test_choosing_is_repeatable():
    made = [better(job(TRUTH), rung("delta", TRUTH, 92), rung("probe", TRUTH, 90), seed=s) for s in (0, 0, 0)]
    assert len(set(made)) == 1
