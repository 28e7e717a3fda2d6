"""Every gate, delta and balancer of the folders by its keyword in a plan: fitted, bundled, loaded, and the same answers."""

import pytest
import torch
from engine import _tiny as tiny
from torch import Generator

import anabranch.engine.fit as fit
import anabranch.engine.result as result
import anabranch.engine.seen as seeing
import anabranch.engine.share as share
from anabranch.core.bank import Bank
from anabranch.core.names import every, find, make
from anabranch.core.site import find as find_sites
from anabranch.engine import change, later
from anabranch.engine.backbone import load as load_backbone
from anabranch.engine.cache import read_json
from anabranch.engine.model import load
from anabranch.engine.seen import seen
from anabranch.engine.share import fitting
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


OF_TOKENS = [("prompt", "mixda"), ("prefix", "task_aware"), ("deep_prompt", {"phatgoose": {"top": 2}})]


@pytest.mark.parametrize(("delta", "gate"), OF_TOKENS)
def test_a_gate_of_tokens_is_refused_where_the_delta_brings_tokens_of_its_own(tmp_path, delta, gate):
    plan = tiny.plan(tiny.home() / "bert", tiny.home() / "data", NAMES, delta=delta, gate=gate)
    name = next(iter(gate)) if isinstance(gate, dict) else gate
    with pytest.raises(
        InputError, match=f"gate {name} weighs the text's tokens one by one, and delta {delta} adds tokens .* learned"
    ):
        tiny.fit(plan, tmp_path / "run")
    assert not (tmp_path / "run" / "work" / "features").exists()  # said before anything heavy


@pytest.mark.parametrize("gate", ["learned", "moore", {"mhr": {"slots": 2}}])
@pytest.mark.parametrize("door", ["prompt", "prefix"])
def test_a_gate_of_rows_or_parameters_suits_every_door(door, gate):
    delta, f = make("delta", door), load_backbone(str(tiny.home() / "bert")).f
    bank = Bank.make(delta, make("gate", gate), find_sites(f, delta.at), Generator(), routes=4)
    assert fitting(bank) is bank


@pytest.mark.parametrize("delta", every("delta"))
def test_a_delta_by_its_keyword(tmp_path, monkeypatch, delta):
    kind = find(f"delta.{delta}")
    if delta in ("masked_common", "common_low_rank", "quantised", "alignment"):
        pytest.skip("a form in which merges are stored, or a part of a method of several stages")
    small = {"rank": 2} if "rank" in getattr(kind, "__dataclass_fields__", {}) else {}
    found, model = fitted(tmp_path, monkeypatch, "delta", delta={delta: small}, stages=None)
    for name, value in measured(model).items():
        assert value == pytest.approx(found["tasks"][name]["delta"], abs=1e-6), name


@pytest.mark.parametrize("delta", ["pissa", "corda"])
@pytest.mark.parametrize("gate", ["by_task", {"poly": {"slots": 2}}])
def test_a_shared_slot_starts_as_its_delta_says(tmp_path, monkeypatch, delta, gate):
    """From f's own weights, and from what all tasks that train it feed these, not from chance."""
    starts, made = [], share.start

    def start(trainer, slots, jobs):
        starts.append((trainer, jobs))
        return made(trainer, slots, jobs)

    monkeypatch.setattr(share, "start", start)
    at = ["attention.query[-1:]", "mlp.out[-1:]"]
    _, model = fitted(tmp_path, monkeypatch, "shared", gate=gate, delta={delta: {"rank": 4}, "at": at})
    trainer, jobs = starts[-1]
    assert [job.name for job in jobs] == [*NAMES]
    bank, each = model.banks[-1], [seen(trainer.features, trainer.banks[0], job) for job in jobs]
    for site in bank.sites:
        W = site.weight(model.backbone.f)[0].detach()
        known = {n: torch.stack([found[site.key][n] for found in each]).mean(0) for n in bank.delta.needs}
        want = bank.delta.init(site, Generator(), known)
        for slot in range(1, 1 + len(bank)):
            got = bank.take(slot)[site.key]
            torch.testing.assert_close(got["a0"] @ got["b0"], want["a0"] @ want["b0"], rtol=0.05, atol=0.02)
        if delta == "pissa":
            u, s, vh = torch.linalg.svd(W)
            torch.testing.assert_close((got["a0"] @ got["b0"]).mT, u[:, :4] * s[:4] @ vh[:4], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("balance", ["equal", "dwa", "famo", "db_mtl", "uncertainty", "sam_gs", "gcond", "samo", "flat_mtl",
                                     "pcgrad", "mgda", {"samo": {"inner": "pcgrad"}}])  # fmt: skip
def test_a_balancer_by_its_keyword(tmp_path, monkeypatch, balance):
    found, model = fitted(tmp_path, monkeypatch, "shared", balance=balance)
    assert all(t["chosen"] == "shared" for t in found["tasks"].values())
    again = tiny.fit(read_json(tmp_path / "run" / "plan.json"), tmp_path / "run", resume=True)
    assert {n: t["shared"] for n, t in again["tasks"].items()} == {n: t["shared"] for n, t in found["tasks"].items()}


@pytest.mark.parametrize("balance", ["visatb", "covalign_mtl", {"stg_mtl": {"clusters": 2}}])
def test_a_balance_of_several_trainings_by_its_keyword(tmp_path, monkeypatch, balance):
    found, model = fitted(tmp_path, monkeypatch, "shared", balance=balance)
    clusters = read_json(tmp_path / "run" / "bundle" / "bundle.json")["shared"].get("slots", 1)
    assert clusters == (2 if isinstance(balance, dict) else 1)
    for name, value in measured(model).items():
        assert value == pytest.approx(found["tasks"][name]["shared"], abs=1e-6), name
    again = tiny.fit(read_json(tmp_path / "run" / "plan.json"), tmp_path / "run", resume=True)
    assert {n: t["shared"] for n, t in again["tasks"].items()} == {n: t["shared"] for n, t in found["tasks"].items()}


def test_domains_train_an_expert_each(tmp_path, monkeypatch):
    gate = {"enforced": {"domains": {"numbers": ["regress"], "words": ["pair", "classify"]}}}
    found, model = fitted(tmp_path, monkeypatch, "shared", gate=gate, balance="pcgrad")
    assert read_json(tmp_path / "run" / "bundle" / "bundle.json")["shared"]["slots"] == 2
    for name, value in measured(model).items():
        assert value == pytest.approx(found["tasks"][name]["shared"], abs=1e-6), name
    gates = dict(zip(model.tasks, model.banks[-1].tables["gate"].data[1:].tolist(), strict=True))
    assert gates["pair"] == gates["classify"] != gates["regress"]
    with pytest.raises(InputError, match="'pairs' of domain words is no task of the plan; did you mean pair"):
        tiny.fit(tiny.plan(tiny.home() / "bert", tiny.home() / "data", NAMES,
                           gate={"enforced": {"domains": {"words": ["pairs"]}}}), tmp_path / "other")  # fmt: skip
    assert not (tmp_path / "other" / "work" / "features").exists()


def test_losses_of_the_balancers_own_by_its_keyword(tmp_path, monkeypatch):
    plan = tiny.plan(tiny.home() / "bert", tiny.home() / "data", ("retrieve", "pair")) | {"stages": EVERY, "balance": "codiemb"}
    with tiny.quick(4):
        found = tiny.fit(plan, tmp_path / "run")
    assert all(t["shared"] is not None for t in found["tasks"].values())


def test_terms_are_for_tasks_that_share_texts(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="pair, .*share 0 in training|share texts"):
        fitted(tmp_path, monkeypatch, "shared", balance="rep_mtl")
    data = tmp_path / "data"
    for name in ("colour", "length"):
        rows = tiny.rows("classify", 112)
        labels = [r["label"] if name == "colour" else ["short", "long"][len(r["text"].split()) > 4] for r in rows]
        made = [r | {"label": y} for r, y in zip(rows, labels, strict=True)]
        for split, part in (("train", made[:64]), ("valid", made[64:88]), ("test", made[88:])):
            tiny.lines(data / name / f"{split}.jsonl", part)
    monkeypatch.setattr(result, "choose", lambda job, rungs, seed: next(r for r in rungs if r.name == "shared"))
    plan = tiny.plan(tiny.home() / "bert", data, ("colour", "length")) | {"stages": EVERY, "balance": "rep_mtl"}
    with tiny.quick(4):
        found = tiny.fit(plan, tmp_path / "shared")
    model = load(tmp_path / "shared")
    for name, scores in model.evaluate(data).items():
        assert scores["score"] == pytest.approx(found["tasks"][name]["shared"], abs=1e-6)


def test_statistics_are_of_the_texts_of_the_task_that_is_named(tmp_path, monkeypatch):
    """CorDA that preserves: C of another task's training texts, for own slots and for the shared one."""
    asked, collect = [], seeing._collect
    monkeypatch.setattr(
        seeing, "_collect", lambda features, bank, units, sums: asked.append(units) or collect(features, bank, units, sums)
    )
    texts = {}
    monkeypatch.setattr(
        fit, "job_of", lambda task, features, job_of=fit.job_of: texts.setdefault(task.name, job_of(task, features))
    )
    corda = {"corda": {"rank": 2, "mode": "kpm", "of": "pair"}}
    fitted(tmp_path, monkeypatch, "delta", delta=corda)
    rows = texts["pair"].parts["train"].units
    assert len(asked) > len(NAMES) and all(units == sorted({u for row in rows for u in row})[: len(units)] for units in asked)
    with pytest.raises(InputError, match="corda: of is the name of a task of the same fit, got 'pear'; did you mean pair"):
        plan = tiny.plan(tiny.home() / "bert", tiny.home() / "data", NAMES, delta={"corda": {"of": "pear"}})
        tiny.fit(plan, tmp_path / "other", dry=True)


# ---- tasks that come later


def added(place, monkeypatch, rung, run_gate, **more):
    """A run of two tasks under a gate, and a third that is added and answers from ``rung``."""
    monkeypatch.setattr(result, "choose", lambda job, rungs, seed: next(r for r in rungs if r.name == "shared"))
    plan = tiny.plan(tiny.home() / "bert", tiny.home() / "data", NAMES[:2]) | {"stages": EVERY, "gate": run_gate}
    with tiny.quick(4):
        tiny.fit(plan, place / "run")
        before = {n: load(place / "run").predict(n, tiny.rows(n, 5, seed=3)) for n in NAMES[:2]}
        files = tiny.files(place / "run" / "bundle")
        monkeypatch.setattr(result, "choose", lambda job, rungs, seed: next(r for r in rungs if r.name == rung))
        found = change.add(place / "run", {"tasks": {"regress": {"data": str(tiny.home() / "data" / "regress")}}} | more)
    model, now = load(place / "run"), tiny.files(place / "run" / "bundle")
    assert {n: now[n] for n in files if n != "bundle.json"} == {n: b for n, b in files.items() if n != "bundle.json"}
    assert {n: model.predict(n, tiny.rows(n, 5, seed=3)) for n in NAMES[:2]} == before
    return found, model


def told(place):
    """Notes of what was added."""
    (part,) = (place / "run" / "work").glob("add-*")
    return read_json(part / "results.json")["notes"]


@pytest.mark.parametrize("gate", ["mhr", "poly", "task_aware", "moore", "learned"])
def test_a_later_task_routes_over_the_slots_that_others_trained(tmp_path, monkeypatch, gate):
    """These stay bit for bit; the task has a row of the gate and a head. Under mhr this is MHR-z."""
    found, model = added(tmp_path, monkeypatch, "shared", gate, balance="pcgrad")
    assert any("balance 'pcgrad' does nothing: later tasks take slots as they are" in note for note in told(tmp_path))
    assert measured(model)["regress"] == pytest.approx(found["tasks"]["regress"]["shared"], abs=1e-6)
    assert found["tasks"]["regress"]["kilobytes"] < 3 < found["tasks"]["pair"]["kilobytes"]  # the slots were there
    assert found["tasks"]["regress"]["delta"] is not None and model.bundle["shared"]["tasks"] == [*NAMES]
    assert len(model.banks[0]) == 0 and len(model.banks[1].tables["gate"]) == 4
    change.remove(tmp_path / "run", "regress")
    assert [*load(tmp_path / "run").tasks] == [*NAMES[:2]]


def test_a_later_task_borrows_the_router_of_the_task_that_it_resembles(tmp_path, monkeypatch):
    """Its texts are those of regress again: the start of its row is the row of regress."""
    seen = {}
    train = later.Earlier.begin
    monkeypatch.setattr(
        later.Earlier, "begin", lambda self, features, job: seen.setdefault("row", (self, train(self, features, job)))[1]
    )
    monkeypatch.setattr(result, "choose", lambda job, rungs, seed: next(r for r in rungs if r.name == "shared"))
    plan = tiny.plan(tiny.home() / "bert", tiny.home() / "data", NAMES) | {"stages": EVERY, "gate": "task_aware"}
    with tiny.quick(4):
        tiny.fit(plan, tmp_path / "run")
        change.add(tmp_path / "run", {"tasks": {"again": {"data": str(tiny.home() / "data" / "regress")}}})
    held, row = seen["row"]
    assert [*held.gates] == [*held.means] == [*NAMES] and torch.equal(row["0.gate"], held.gates["regress"]["0.gate"])
    model = load(tmp_path / "run")
    rows = model.banks[1].tables["gate"].data[1:]
    near = torch.nn.functional.cosine_similarity(rows[3], rows[:3])
    assert near.argmax() == 2 and not torch.equal(rows[3], rows[2])  # and then it learned


def test_a_later_task_s_own_slot_begins_at_the_mean_of_the_skills(tmp_path, monkeypatch):
    """MHR-mu."""
    held = []
    monkeypatch.setattr(
        fit, "trainer_of", lambda run, *banks, trainer=fit.trainer_of, **more: held.append(more) or trainer(run, *banks, **more)
    )
    found, model = added(tmp_path, monkeypatch, "delta", {"mhr": {"slots": 3}}, gate="mhr_mu")
    skills = model.banks[1].tables["own"].data[1:].float()
    (begin,) = (more["begin"]["regress"] for more in held if more.get("begin"))
    assert len(skills) == 3
    torch.testing.assert_close(begin["0.own"], skills.mean(0))
    assert found["tasks"]["regress"]["shared"] is None and not torch.equal(model.banks[0].tables["own"].data[1], begin["0.own"])


def test_a_mean_of_skills_needs_skills(tmp_path, monkeypatch):
    monkeypatch.setattr(result, "choose", lambda job, rungs, seed: rungs[0])
    with tiny.quick(4):
        tiny.fit(tiny.plan(tiny.home() / "bert", tiny.home() / "data", NAMES[:2]), tmp_path / "run")
    more = {"tasks": {"regress": {"data": str(tiny.home() / "data" / "regress")}}}
    with pytest.raises(InputError, match="gate 'mhr_mu' begins later tasks at the mean of slots .* such as mhr or poly"):
        change.add(tmp_path / "run", more | {"gate": "mhr_mu"})
    with pytest.raises(InputError, match="a bundle has one gate, here by_task: leave gate out"):
        change.add(tmp_path / "run", more | {"gate": "mhr"})
