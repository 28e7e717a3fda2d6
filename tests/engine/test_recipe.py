"""Balances of several trainings, and what a balancer's file says beside it: terms, losses, tasks in a step."""

from dataclasses import replace

import pytest
import torch
from engine.test_train import trainer

from anabranch.balance.codiemb import contrastive
from anabranch.core.names import make
from anabranch.engine.balanced import Beside, Here, Once, beside, expand, way_of
from anabranch.engine.recipe import Trainings, jointly, target, weighted
from anabranch.engine.share import share, start, together
from anabranch.engine.train import Learner
from anabranch.errors import InputError


def twins(folder):
    """The same texts under two labels: the classes, and the classes in another order."""
    made, [(job, head)] = trainer(folder, "classify")
    turned = {n: replace(p, y=(p.y + 1) % 3) for n, p in job.parts.items()}
    return made, [(job, head), (replace(job, name="turned", parts=turned), head)]


def work_of(jobs, rows):
    return [(Learner(job, {f"head.{n}": t for n, t in head.items()}, 1), rows) for job, head in jobs]


def test_one_pass_gives_the_gradients_that_copies_give(tmp_path):
    torch.manual_seed(0)
    made, jobs = twins(tmp_path)
    jobs = [(job, {n: 0.2 * t for n, t in head.items()}) for job, head in jobs]  # unsure: of a sure answer rounding is the slope
    made.common, made.routes = True, together(1)
    common, rows, term = Learner(jobs[0][0], start(made), 1), list(range(10)), beside(make("balance", "rep_mtl")).term
    common.theta["0.own"] = common.theta["0.own"] + 0.1 * torch.randn(common.theta["0.own"].shape)
    apart, once = Here(made, common, work_of(jobs, rows)), Once(made, common, work_of(jobs, rows), term)
    one, two = apart.point, once.point
    assert one.names == ["classify", "turned"] and two.names == [*one.names, "term:tsr", "term:csa"]
    torch.testing.assert_close(two.losses(two.theta)[:2], one.losses(one.theta), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(two.grads(two.theta)[:2], one.grads(one.theta), rtol=1e-3, atol=1e-6)
    for a, b in zip(apart.heads, once.heads, strict=True):
        torch.testing.assert_close(a["W"].grad, b["W"].grad, rtol=1e-3, atol=1e-6)
    for r, g in enumerate(two.grads(two.theta)):  # along each gradient, where the rise stands out of rounding
        step = 5e-4 * g / g.norm()
        rise = (two.losses(two.theta + step) - two.losses(two.theta - step))[r] / 1e-3
        torch.testing.assert_close(rise, g.norm(), rtol=0.02, atol=1e-2)


def test_terms_see_the_texts_that_all_tasks_share(tmp_path):
    made, [(job, head), (other, _)] = twins(tmp_path)
    part = other.parts["train"]
    few = replace(other, parts=other.parts | {"train": replace(part, units=part.units[::-1][:20], y=part.y.flip(0)[:20])})
    both = [(job, head), (few, head)]
    shared = [job.parts["train"] for job, _ in way_of(made, both, make("balance", "rep_mtl")).pairs]
    assert shared[0].units == shared[1].units and 2 <= len(shared[0]) <= 20
    assert torch.equal((shared[0].y + 1) % 3, shared[1].y)
    theta, learners = share(made, both, 2, make("balance", "rep_mtl"), "k")
    assert learners[0].job is job and not torch.equal(theta["0.own"], start(made)["0.own"])
    with pytest.raises(InputError, match="of kind tag"):
        tagged, jobs = trainer(tmp_path / "tag", "classify", "tag")
        share(tagged, jobs, 1, make("balance", "rep_mtl"), "k")


def test_a_balancers_own_losses_take_the_place_of_those_of_kinds_without_classes(tmp_path):
    made, jobs = trainer(tmp_path, "retrieve", "pair", "regress")
    said = beside(make("balance", "codiemb"))
    assert said.together == 1 and beside(make("balance", "famo")) == Beside() == beside(make("balance", "dwa"))
    retrieve, pair, regress = (job for job, _ in way_of(made, jobs, make("balance", "codiemb")).pairs)
    out = torch.randn(8, 5)
    assert torch.equal(retrieve.kind.loss(out, None, [2] * 4), contrastive(out, None, [2] * 4))
    assert (pair.kind, regress.kind) == (jobs[1][0].kind, jobs[2][0].kind)  # this pair has classes
    seen = []

    def watched(state, point):
        seen.append(point.names)
        return point.grads(point.theta)[0], None

    watched.__module__ = "anabranch.balance.codiemb"
    share(made, jobs, 1, watched, "k")
    assert all(len(names) == 1 for names in seen) and {n for names in seen for n in names} == {"retrieve", "pair", "regress"}


def test_a_training_is_by_its_weights_and_goes_on_where_it_was(tmp_path):
    made, jobs = trainer(tmp_path, "classify", "pair", "tag")
    train = Trainings(made, jobs, 2, "k", lambda done, of: None, 1, True)
    run = train({"classify": 1.0, "pair": 0.5, "tag": 0.0})
    assert run is train({"classify": 1.0, "pair": 0.5, "tag": 0.0})
    assert set(run.scores) == {"classify", "pair", "tag"} and set(run.truth) == {"classify", "pair"}
    for job, _ in jobs[:2]:
        truth = run.truth[job.name]
        assert truth.shape == (2, len(job.parts["train"])) and truth.min() > 0 and truth.max() <= 1
    again = Trainings(made, jobs, 2, "k", lambda done, of: pytest.fail("trained twice"), 1, True)
    found = again({"classify": 1.0, "pair": 0.5, "tag": 0.0})
    assert found.scores == run.scores and torch.equal(found.truth["pair"], run.truth["pair"])
    x, y = train.features("tag")
    assert len(x) == len(y) == len(jobs[2][0].parts["train"]) and torch.allclose(y.sum(1), torch.ones(len(y)))


def test_groups_are_served_by_the_run_that_trained_them(tmp_path):
    made, jobs = trainer(tmp_path, "classify", "pair", "regress")
    groups = jointly(made, jobs, 1, {"stg_mtl": {"clusters": 2}}, "k")
    assert sorted(m.job.name for _, members in groups for m in members) == ["classify", "pair", "regress"] and len(groups) == 2
    (one,) = jointly(made, jobs, 1, "covalign_mtl", "k")
    assert len(one[1]) == 3
    made, jobs = trainer(tmp_path / "r", "retrieve", "pair")
    with pytest.raises(InputError, match="retrieve is of kind retrieve, which"):
        jointly(made, jobs, 1, {"stg_mtl": {"clusters": 2}}, "k")
    with pytest.raises(InputError, match="no classes and no numbers"):
        jointly(made, jobs, 1, "covalign_mtl", "k")


def test_weights_weigh_the_tasks_gradients():
    from laws.balance import point

    found, _ = weighted({"task 0": 2.0, "task 1": 0.5})(None, point(torch.eye(2)))
    assert torch.equal(found, torch.tensor([1.0, 0.25]))


def test_targets_are_one_hot_means_or_numbers():
    assert torch.equal(target(torch.tensor(1), 3), torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(target(torch.tensor([0, 1, 1, 1]), 2), torch.tensor([0.25, 0.75]))
    assert torch.equal(target(torch.tensor([0.5, 2.0]), 0), torch.tensor([0.5, 2.0]))


def test_leaves_of_a_view_are_the_shared_numbers(tmp_path):
    made, jobs = trainer(tmp_path, "classify", "pair")
    theta = start(made)
    assert torch.equal(expand(made, theta, 1)["0.own"].detach()[1:], theta["0.own"])
