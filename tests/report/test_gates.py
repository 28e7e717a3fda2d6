"""Weights of gates are those that the model itself uses, on average over tokens, sites and texts."""

import pytest
import torch
from engine import _tiny as tiny

from anabranch.engine.model import load
from anabranch.report import html
from anabranch.report.gates import fired, named


@pytest.fixture(scope="module", params=["learned", {"arrow": {"top": 2}}], ids=["learned", "arrow"])
def run(request, tmp_path_factory):
    """A fit whose shared rung is under a gate, and is taken by every task."""
    place, gate = tmp_path_factory.mktemp("gates"), request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anabranch.engine.result.choose", lambda job, rungs, seed: next(r for r in rungs if r.name == "shared"))
        plan = tiny.plan(tiny.home() / "bert", tiny.home() / "data", ["classify", "pair", "tag"], gate=gate)
        results = tiny.fit(plan, place / "run", steps=3)
    return gate, place / "run", results


def test_a_fit_tells_how_much_each_task_takes(run):
    gate, out, results = run
    gates = results["gates"]
    weights = torch.tensor(gates["weights"])
    assert gates["tasks"] == ["classify", "pair", "tag"] and weights.shape == (3, len(gates["slots"]))
    assert gates["slots"] == (gates["tasks"] if gate != "learned" else ["slot 1", "slot 2", "slot 3", "slot 4"])
    assert (weights >= 0).all() and torch.allclose(weights.sum(1), torch.ones(3), atol=1e-3)
    assert "Use of the gates" in html.page(out)


def test_a_row_of_a_bundle_tells_what_fired(run):
    gate, out, results = run
    model = load(out)
    row = {"text": "the red cat", "text_b": "dog", "tokens": ["the", "red", "cat"]}
    for name in model.tasks:
        found = fired(model, model.task(name), row)
        assert {f["slot"] for f in found} == set(results["gates"]["slots"]) and sum(f["weight"] for f in found) == pytest.approx(
            1, abs=1e-3
        )
        assert [f["weight"] for f in found] == sorted((f["weight"] for f in found), reverse=True)


def test_no_gate_has_no_weights():
    model = load(tiny.fitted("bert")[0])
    assert all(fired(model, served, {"text": "a"}) is None for served in model.served.values())
    assert "gates" not in tiny.fitted("bert")[1]


def test_slots_of_a_library_are_called_after_their_tasks():
    assert named(2, ["a", "b"], True) == ["a", "b"] and named(3, ["a", "b"], True) == named(3, ["a", "b"], False) == [
        "slot 1",
        "slot 2",
        "slot 3",
    ]
