"""Training of many tasks at once: order, Adam, mixed batches, what a checkpoint keeps, when it ends."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import _tiny as tiny
from torch.nn.functional import cross_entropy

from anabranch.core.adapt import Adapted
from anabranch.engine import linear, train
from anabranch.engine.backbone import backbone_of
from anabranch.engine.features import Features
from anabranch.engine.job import Head, Job, job_of
from anabranch.engine.passes import encode, learned, said, seeded
from anabranch.engine.train import Learner, Trainer
from anabranch.task.data import load_task
from anabranch.task.plan import TaskSpec


def trainer(
    folder: Path, *names: str, backbone: str = "bert", tail: int = 1, **more: Any
) -> tuple[Trainer, list[tuple[Job, Head]]]:
    """A trainer of rank-2 LoRA at the upper block, and jobs with heads of zeros."""
    f = backbone_of(str(tiny.home() / backbone), "float32")
    features = Features(f, folder / "features", tail)
    made = [job_of(load_task(n, TaskSpec(data=str(tiny.home() / "data" / n))), features) for n in names]
    features.run()
    jobs = [(job, linear.probe(job, features)[0]) for job in made]
    return Trainer(features, [tiny.bank(f.f, {"lora": {"rank": 2}}, 0)], [0.02], folder / "train", 0, **more), jobs


def trained(made: Trainer, jobs: list[tuple[Job, Head]], epochs: int = 3, stop: int = 0) -> dict[str, Learner]:
    """All learners at their ends, or after ``stop`` passes in all."""
    passed = []

    def told(learner: Learner) -> None:
        passed.append(learner)
        if len(passed) == stop:
            raise KeyboardInterrupt

    try:
        return {m.job.name: m for m in made.run([(job, head, epochs, "k") for job, head in jobs], told)}
    except KeyboardInterrupt:
        return {m.job.name: m for m in passed}


def equal(a: Learner, b: Learner) -> bool:
    mine, theirs = a.state(), b.state()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine) and a.note() == b.note()


def test_seeds_are_of_all_parts():
    made = {tuple(torch.randperm(9, generator=seeded(*parts)).tolist()) for parts in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 1)]}
    assert len(made) == 4 and torch.equal(torch.rand(3, generator=seeded(2, "x")), torch.rand(3, generator=seeded(2, "x")))


def test_each_epoch_sees_every_row_once_in_its_own_order(tmp_path):
    made, [(job, _), (other, _)] = trainer(tmp_path, "classify", "pair")
    learner = Learner(job, {}, 3)
    orders = []
    for epoch in range(3):
        learner.epoch = epoch
        batches = learner.batches(made.features, 0)
        assert [len(b) for b in sorted(batches, key=len)] == [32, 32] and len(batches) == learner.steps
        assert sorted(r for b in batches for r in b) == list(range(64))
        orders.append(batches)
    assert orders[0] != orders[1] != orders[2] and orders[2] == learner.batches(made.features, 0)
    assert learner.batches(made.features, 1) != orders[2] != Learner(other, {}, 3, epoch=2).batches(made.features, 0)


def test_the_rate_rises_then_falls_to_zero(tmp_path):
    _, [(job, _)] = trainer(tmp_path, "classify")
    learner = Learner(job, {}, 20)
    rates = []
    for learner.step in range(40):
        rates.append(learner.rate())
    top = rates.index(max(rates))
    assert (
        0 < rates[0] < max(rates) <= 1 and rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    )
    assert 0 < rates[-1] < 0.05
    learner.step, learner.planned = 40, 400
    assert learner.rate() > 0.8


def test_update_is_clipped_adam(tmp_path):
    made, [(job, _)] = trainer(tmp_path, "classify")
    rng = torch.Generator().manual_seed(0)
    start = {"0.own": torch.randn(6, generator=rng), "head.W": torch.randn(2, 3, generator=rng)}
    learner = Learner(job, dict(start), 1, planned=1000)
    theirs = {n: t.clone().requires_grad_() for n, t in start.items()}
    adam = torch.optim.Adam([{"params": [theirs["0.own"]], "lr": 0.02}, {"params": [theirs["head.W"]], "lr": train.HEAD_LR}])
    base = [group["lr"] for group in adam.param_groups]
    for size in (0.1, 30.0, 1.0, 0.0, 5.0):
        grads = {n: size * torch.randn(t.shape, generator=rng) for n, t in start.items()}
        for group, lr in zip(adam.param_groups, base, strict=True):
            group["lr"] = lr * learner.rate()
        for n, t in theirs.items():
            t.grad = grads[n].clone()
            torch.nn.utils.clip_grad_norm_([t], 1.0)
        adam.step()
        made.update(learner, grads)
        for n, t in theirs.items():
            torch.testing.assert_close(learner.theta[n], t.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("words", [False, True])
def test_encode_gives_each_row_its_own_slot_in_the_order_asked(tmp_path, monkeypatch, words):
    f = backbone_of(str(tiny.home() / "bert"), "float32")
    features = Features(f, None, 1)
    texts = [r["text"] for r in tiny.rows("classify", 20)] + ["the " * 40, "red " * 20]
    units = features.add(f.tokens([tuple(t.split()) for t in texts] if words else texts))
    adapted = Adapted(f.f, [tiny.bank(f.f, slots=3)], 1)
    slots = [i % 4 for i in range(len(units))]
    with torch.no_grad():
        whole = encode(features, adapted, units, slots, words)
        monkeypatch.setattr("anabranch.engine.passes.TOKENS", 64)
        small = encode(features, adapted, units, slots, words)
        alone = [encode(features, adapted, [u], [s], words)[0] for u, s in zip(units, slots, strict=True)]
    for a, b, c in zip(whole, small, alone, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=5e-6)
        torch.testing.assert_close(b, c, rtol=0, atol=5e-6)
    assert [len(z) for z in whole] == [len(t.split()) if words else 1 for t in texts]
    assert encode(features, adapted, [], [], words) == []


def test_a_full_pass_is_cut_between_slots(tmp_path, monkeypatch):
    """Rows of one slot are divided alike with and without others."""
    f = backbone_of(str(tiny.home() / "bert"), "float32")
    features, seen = Features(f, None, 1), []
    units = features.add(f.tokens([f"w{i} the" for i in range(30)]))
    adapted = Adapted(f.f, [tiny.bank(f.f, slots=3)], 1)
    monkeypatch.setattr("anabranch.engine.backbone.STEP", 16)
    monkeypatch.setattr("anabranch.engine.passes.TOKENS", 16 * 8)
    forward = features.forward
    monkeypatch.setattr(
        features, "forward", lambda a, u, route, w: seen.append(route.ids[:, 0].tolist()) or forward(a, u, route, w)
    )
    with torch.enable_grad():
        encode(features, adapted, units, [1] * 5 + [2] * 5 + [3] * 20, False)
    assert seen == [[1] * 5, [2] * 5, [3] * 8, [3] * 8, [3] * 4]
    seen.clear()
    with torch.enable_grad():
        encode(features, adapted, units[:12], [1] * 4 + [2] * 4 + [3] * 4, False)
    assert seen == [[1] * 4 + [2] * 4, [3] * 4]


@pytest.mark.parametrize("tail", [0, 1])
def test_the_loss_of_what_is_said_by_hand(tail):
    f = backbone_of(str(tiny.home() / "gpt2"), "float32")
    features = Features(f, None, tail)
    job = job_of(load_task("generate", TaskSpec(data=str(tiny.home() / "data" / "generate"))), features)
    units = [row[0] for row in job.parts["train"].units[:5]] + features.add(f.spoken(["red " * 20], ["cat owl"]))
    want = []
    for u in units:
        ids, start = torch.tensor([features.tokens[u].ids]), features.tokens[u].starts[0]
        with torch.no_grad():
            logits = f.f(input_ids=ids).logits[0]
        want.append(cross_entropy(logits[start - 1 : -1], ids[0, start:]))
    with torch.no_grad():
        found = said(features, Adapted(f.f, [tiny.bank(f.f)], tail), job, units, 0)
    assert float(found) == pytest.approx(float(torch.stack(want).mean()), rel=1e-5)


def test_a_query_is_learned_with_its_document(tmp_path):
    _, [(job, _), (other, _)] = trainer(tmp_path, "retrieve", "classify")
    part = job.parts["train"]
    for row, label, units in zip(learned(job, part), part.labels, part.units, strict=True):
        assert row == [*units, job.documents[label[0]]]
    assert learned(other, other.parts["train"]) is other.parts["train"].units


def test_a_step_of_many_is_the_steps_of_each(tmp_path):
    """Numbers of a learner do not depend on who else is in the step."""
    made, jobs = trainer(tmp_path, "classify", "tag", "retrieve", "choice")
    together = [(made.learner(job, head, 3, "x"), list(range(9))) for job, head in jobs]
    made.step(together)
    made.step(together[::-1])
    for (job, head), (mine, rows) in zip(jobs, together, strict=True):
        alone = made.learner(job, head, 3, "x")
        made.step([(alone, rows)])
        made.step([(alone, rows)])
        assert equal(alone, mine) and alone.step == 2 and math.isfinite(mine.loss)


def test_training_one_leaves_every_bit_of_another(tmp_path):
    made, [(a, head), (b, other)] = trainer(tmp_path, "classify", "pair")
    first, second = made.learner(a, head, 3, "x"), made.learner(b, other, 3, "x")
    before = {n: t.clone() for n, t in second.state().items()}
    made.step([(first, list(range(20)))])
    assert all(torch.equal(t, before[n]) for n, t in second.state().items()) and second.step == 0


def test_training_lowers_the_loss_and_keeps_the_best(tmp_path):
    made, jobs = trainer(tmp_path, "retrieve", "classify", patience=99)
    for learner in trained(made, jobs, 8).values():
        losses = [e["loss"] for e in learner.curve]
        assert losses[-1] < losses[0] and [e["epoch"] for e in learner.curve] == list(range(1, 9)) and learner.epoch == 8
        assert learner.step == 8 * learner.steps and learner.best.keys() == learner.theta.keys()
        if learner.job.name == "retrieve":  # no head, so the score decides
            assert learner.best_score == max(e["valid"] for e in learner.curve)


def test_what_is_kept_is_enough_to_go_on(tmp_path):
    made, jobs = trainer(tmp_path / "a", "classify", "tag", "retrieve")
    whole = trained(made, jobs, 4)
    for stop in (1, 7):
        again, same_jobs = trainer(tmp_path / f"{stop}", "classify", "tag", "retrieve")
        trained(again, same_jobs, 4, stop)
        rest, _ = trainer(tmp_path / f"{stop}", "classify", "tag", "retrieve")
        found = trained(rest, same_jobs, 4)
        assert found.keys() == whole.keys() and all(equal(found[n], whole[n]) for n in whole)


def test_a_finished_task_trains_no_more(tmp_path, monkeypatch):
    made, jobs = trainer(tmp_path, "classify", "choice")
    before = trained(made, jobs, 2)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("trained again"))
    assert all(equal(m, before[n]) for n, m in trained(made, jobs, 2).items())


def test_a_damaged_checkpoint_starts_over(tmp_path):
    made, jobs = trainer(tmp_path, "classify")
    before = trained(made, jobs, 2)["classify"]
    path = made.file(jobs[0][0], "k")
    for change in (lambda b: b[:-5], lambda b: b"", lambda b: b[:40] + b"x" + b[41:]):
        path.write_bytes(change(path.read_bytes()))
        fresh = made.learner(*jobs[0], 2, "k")
        assert fresh.epoch == 0 and not path.exists()
        assert equal(trained(made, jobs, 2)["classify"], before)


def test_patience(tmp_path):
    """A third of the passes may go by without a state that is kept; without patience, training goes to its end."""
    made, [(job, _)] = trainer(tmp_path, "classify", patience=1 / 3)

    def done(*kept: bool, epochs: int = 6) -> bool:
        curve = [{"epoch": i + 1, "loss": 1.0, "valid": 0.5, "kept": k} for i, k in enumerate(kept)]
        return made.done(Learner(job, {}, epochs, epoch=len(kept), curve=curve))

    assert not done() and not done(True) and not done(True, False) and not done(False) and not done(False, True, False)
    assert done(True, False, False) and done(False, False) and done(True, False, epochs=3) and done(True, True, epochs=2)
    blind = [{"epoch": i, "loss": 1.0} for i in range(8)]  # no validation rows
    assert not made.done(Learner(job, {}, 9, epoch=8, curve=blind))
    assert made.done(Learner(job, {}, 9, epoch=1, curve=[{"epoch": 1}]))  # diverged
    made.patience = 0.0
    assert not done(True, False, False, False, False)


def test_what_diverges_ends_with_what_was_best(tmp_path):
    made, [(job, head)] = trainer(tmp_path, "classify")
    learner = made.learner(job, head, 5, "k")
    made.step([(learner, list(range(32)))])
    learner.loss = 1.0
    made.close(learner, "k")
    best = {n: t.clone() for n, t in learner.best.items()}
    learner.theta["0.own"] = learner.theta["0.own"] * math.nan
    learner.loss = 1.0
    made.close(learner, "k")
    assert learner.curve[-1] == {"epoch": 2} and made.done(learner)
    assert all(torch.equal(t, best[n]) for n, t in learner.best.items())
    again = made.learner(job, head, 5, "k")
    assert made.done(again) and all(torch.equal(t, best[n]) for n, t in again.best.items())
