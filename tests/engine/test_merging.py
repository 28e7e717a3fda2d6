"""What a merge may ask of the tasks' data: gradients, losses and entropies of every kind; and a merge that fails."""

from typing import Any

import pytest
import torch
from engine import _tiny as tiny
from engine.test_change import rung
from engine.test_train import trainer

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.engine.algebra import dense_bank
from anabranch.engine.merging import AMONG, dense, fisher, look_of, losses, merged, taken
from anabranch.errors import InputError

STAGES = ["features", "probe", "delta"]


def slots(made: Any, n: int) -> Bank:
    """A random slot for each of n tasks."""
    return tiny.bank(made.features.backbone.f, {"lora": {"rank": 2}}, n)


def look(made: Any, jobs: Any, few: int = 12) -> Any:
    bank = slots(made, len(jobs))
    trees = [dense(made.features.backbone.f, bank, j + 1) for j in range(len(jobs))]
    kinds, heads = [job for job, _ in jobs], [head for _, head in jobs]
    return look_of(made.features, kinds, heads, bank.sites, trees, few, 0, "valid"), trees


def test_every_kind_has_losses_and_curvature(tmp_path):
    """Fisher of a task whose loss is among others is that of its rows in small batches, and no task is without curvature."""
    made, jobs = trainer(tmp_path, *tiny.HEADED)
    bank = slots(made, len(jobs))
    found = {job.name: fisher(made.features, job, head, bank, j, 4) for j, (job, head) in enumerate(jobs, 1)}
    for name, tree in found.items():
        assert all(p["W"].min() >= 0 and p["W"].isfinite().all() for p in tree.values()), name
        assert sum(p["W"].sum() for p in tree.values()) > 0, name
    asked, trees = look(made, jobs)
    values = asked.losses(trees[0])
    assert values.shape == (len(jobs),) and values.isfinite().all() and values.min() > 0


def test_a_query_s_curvature_is_that_of_its_loss_among_others(tmp_path):
    made, [(job, head)] = trainer(tmp_path, "retrieve")
    bank = slots(made, 1)
    got, f = fisher(made.features, job, head, bank, 1, AMONG + 1), made.features.backbone.f
    whole = dense_bank(bank.sites, dense(f, bank, 1))
    adapted, want = Adapted(f, [whole], made.features.tail), torch.zeros(whole.tables["own"].n)
    for rows in ([0, 1, 2, 3, 4], [5, 6, 7, 8]):
        for i in range(len(rows)):
            leaf = torch.cat([torch.zeros(1, whole.tables["own"].n), whole.tables["own"].data[1:2]]).requires_grad_()
            adapted.sources[0]["own"] = leaf
            losses(made.features, adapted, job, head, taken(job.parts["train"], rows))[i].backward()
            want += leaf.grad[1].square() / (AMONG + 1)
    for site, p in whole.tables["own"].split(want).items():
        torch.testing.assert_close(got[site]["W"], p["W"], rtol=1e-4, atol=1e-9)
    assert want.sum() > 0


def test_a_merge_sees_what_a_task_that_speaks_loses(tmp_path):
    made, jobs = trainer(tmp_path, "generate", "classify", backbone="gpt2")
    asked, trees = look(made, jobs, 6)
    assert asked.losses(trees[0]).isfinite().all() and asked.losses(trees[0], 0).shape == (1,)
    assert asked.entropies(trees[0])[0] == 0
    tree = fisher(made.features, *jobs[0], slots(made, 2), 1, 3)
    assert sum(p["W"].sum() for p in tree.values()) > 0


def test_entropies_are_of_tasks_whose_answers_are_distributions(tmp_path):
    made, jobs = trainer(tmp_path, "multilabel", "choice", "regress", "retrieve")
    jobs = [(job, {n: t + (0.1 if n == "b" else 0.0) for n, t in head.items()}) for job, head in jobs]
    asked, trees = look(made, jobs)
    tree = {s: {n: t.clone().requires_grad_() for n, t in p.items()} for s, p in trees[0].items()}
    found = asked.entropies(tree)
    assert found.shape == (4,) and (found[:2] > 0).all() and found[2:].tolist() == [0, 0]
    grads = torch.autograd.grad(found.sum(), [t for p in tree.values() for t in p.values()])
    assert all(g.isfinite().all() for g in grads) and sum(g.abs().sum() for g in grads) > 0
    none, trees = look(made, jobs[2:])
    with pytest.raises(InputError, match=r"regress \(regress\), retrieve \(retrieve\): take anisotropic with objective: labels"):
        none.entropies(trees[0])
    with pytest.raises(InputError, match="learns from the entropy"):
        merged(made.features, [j for j, _ in jobs[2:]], [h for _, h in jobs[2:]], slots(made, 2), {"adamerging": {"steps": 1}})


def test_fit_offers_fisher_of_a_task_that_retrieves(tmp_path):
    plan = tiny.plan(tiny.home() / "bert", tiny.home() / "data", ["classify", "retrieve"], merge="fisher", stages=STAGES)
    with rung(-1):
        results = tiny.fit(plan, tmp_path / "run", steps=4)
    assert results["merged"]["valid"].keys() == {"fisher"} and not any("left out" in note for note in results.get("notes", []))


def test_a_merge_that_fails_costs_a_note_and_not_the_run(tmp_path, monkeypatch):
    """Of what a merge raises only the disk's errors end the run; numbers that are not finite are no merge."""

    def failing(features, jobs, heads, bank, spec, **more):
        if spec == "ties":
            torch.zeros(2) @ torch.zeros(3)
        made = merged(features, jobs, heads, bank, spec, **more)
        if spec == "dare":
            made.bank.tables["own"].data[1] = torch.nan
        return made

    monkeypatch.setattr("anabranch.engine.offer.merged", failing)
    names = ["regress", "retrieve"]
    merges = ["ties", "dare", {"adamerging": {"steps": 1}}, "mean"]
    with rung(-1):
        results = tiny.fit(
            tiny.plan(tiny.home() / "bert", tiny.home() / "data", names, merge=merges, stages=STAGES), tmp_path / "run", steps=4
        )
    assert results["merged"]["valid"].keys() == {"mean"} and (tmp_path / "run" / "results.json").exists()
    left = [note for note in results["notes"] if "left out" in note]
    said = ["'ties' is left out: it failed with RuntimeError", "'dare' is left out: what it made", "learns from the entropy"]
    assert len(left) == 3 and all(any(words in note for note in left) for words in said), left
