"""Every gate, delta and balancer of the folders by its keyword in a plan: fitted, bundled, loaded, and the same answers."""

import pytest
from engine import _tiny as tiny

import anabranch.engine.result as result
from anabranch.core.names import every, find
from anabranch.engine.cache import read_json
from anabranch.engine.model import load
from anabranch.errors import InputError

NAMES = ("classify", "pair", "regress")
EVERY = ["features", "probe", "delta", "share", "choose"]
TOP = {"arrow": 2, "phatgoose": 2, "keyed": 2}


def fitted(place, monkeypatch, rung, **more):
    """A run in which every task answers from ``rung``."""
    monkeypatch.setattr(result, "choose", lambda job, rungs, seed: next(r for r in rungs if r.name == rung))
    plan = tiny.plan(tiny.home() / "bert", tiny.home() / "data", NAMES) | {"stages": EVERY} | more
    with tiny.quick(4):
        return tiny.fit(plan, place / "run"), load(place / "run")


def measured(model):
    """Scores of the loaded bundle on the tasks' test rows."""
    return {n: found["score"] for n, found in model.evaluate(tiny.home() / "data").items()}


@pytest.mark.parametrize("gate", [g for g in every("gate") if not find(f"gate.{g}").plain])
def test_a_gate_by_its_keyword(tmp_path, monkeypatch, gate):
    kind = find(f"gate.{gate}")
    spec = {gate: {"top": TOP[gate]}} if gate in TOP else gate
    found, model = fitted(tmp_path, monkeypatch, "shared", gate=spec)
    bundle = read_json(tmp_path / "run" / "bundle" / "bundle.json")
    slots = bundle["shared"]["slots"]
    assert slots == (len(NAMES) if kind.library else slots) and slots > 1
    assert [b["gate"]["method"] for b in bundle["banks"]] == ["gate.by_task", f"gate.{gate}"]
    for name, value in measured(model).items():
        assert value == pytest.approx(found["tasks"][name]["shared"], abs=1e-6), name


@pytest.mark.parametrize("delta", every("delta"))
def test_a_delta_by_its_keyword(tmp_path, monkeypatch, delta):
    kind = find(f"delta.{delta}")
    if delta in ("masked_common", "common_low_rank", "quantised", "alignment"):
        pytest.skip("a form in which merges are stored, or a part of a method of several stages")
    small = {"rank": 2} if "rank" in getattr(kind, "__dataclass_fields__", {}) else {}
    found, model = fitted(tmp_path, monkeypatch, "delta", delta={delta: small}, stages=None)
    for name, value in measured(model).items():
        assert value == pytest.approx(found["tasks"][name]["delta"], abs=1e-6), name


@pytest.mark.parametrize("balance", ["equal", "dwa", "famo", "db_mtl", "uncertainty", "sam_gs", "gcond", "samo", "flat_mtl",
                                     "pcgrad", "mgda", {"samo": {"inner": "pcgrad"}}])  # fmt: skip
def test_a_balancer_by_its_keyword(tmp_path, monkeypatch, balance):
    found, model = fitted(tmp_path, monkeypatch, "shared", balance=balance)
    assert all(t["chosen"] == "shared" for t in found["tasks"].values())
    again = tiny.fit(read_json(tmp_path / "run" / "plan.json"), tmp_path / "run", resume=True)
    assert {n: t["shared"] for n, t in again["tasks"].items()} == {n: t["shared"] for n, t in found["tasks"].items()}


@pytest.mark.parametrize("balance", ["visatb", "stg_mtl"])
def test_a_balance_of_several_trainings_says_so(tmp_path, monkeypatch, balance):
    with pytest.raises(InputError, match="trains several times"):
        fitted(tmp_path, monkeypatch, "shared", balance=balance)
