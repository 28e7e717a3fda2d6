"""Weights of gates are those that the model itself uses, on average over tokens, sites and texts."""

from io import StringIO

import pytest
import torch
from engine import _tiny as tiny
from rich.console import Console

from anabranch.engine.model import load
from anabranch.report import html, table
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
    page, console = html.page(out), Console(width=120, file=StringIO())
    assert "Use of the gates" in page
    console.print(table.run(results, out))
    for task, row in zip(gates["tasks"], gates["weights"], strict=True):  # on the page by task, in the terminal by slot
        most = max(zip(row, gates["slots"], strict=True), key=lambda pair: pair[0])
        assert f'<tr data-task="{task}"><th scope="row">{task}</th><td class="any">{most[1]} {most[0]:.2f}' in page
        assert [task, *(f"{w:.3f}" for w in row)] in [line.split() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(("delta", "gate"), [("prompt", "learned"), ("prefix", {"keyed": {"top": 2}})])
def test_soft_tokens_are_weighed_too(tmp_path, delta, gate):
    plan = tiny.plan(tiny.home() / "bert", tiny.home() / "data", ["classify", "pair"], gate=gate, delta=delta)
    weights = torch.tensor(tiny.fit(plan, tmp_path / "run", steps=2)["gates"]["weights"])
    assert len(weights) == 2 and torch.allclose(weights.sum(1), torch.ones(2), atol=1e-3)


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
