"""Tasks with the same texts: f reads each once for all of them, and what is balanced are the gradients at its features."""

from dataclasses import replace

import pytest
import torch
from engine import _tiny as tiny
from engine.test_recipe import twins, work_of
from engine.test_train import equal

from anabranch.core.balance import lift
from anabranch.core.names import every, make
from anabranch.engine.balanced import AtFeatures, Here, Once, stays, way_of
from anabranch.engine.share import balancer, share, start, step, together
from anabranch.engine.train import Learner

FAR = {"db_mtl", "flat_mtl", "gcond", "sam_gs", "samo"}  # keep directions from step to step, or look at other numbers


def three(folder):
    """A classification, the same with its classes turned, and a third task of other difficulty; heads that are unsure."""
    made, jobs = twins(folder)
    job, head = jobs[0]
    odd = {n: replace(p, y=p.y.clamp(max=1)) for n, p in job.parts.items()}
    jobs = [*jobs, (replace(job, name="odd", parts=odd), head)]
    return made, [(job, {n: 0.2 * t for n, t in head.items()}) for job, head in jobs]


def at(made, jobs, way):
    made.common, made.routes = True, together(1)
    common = Learner(jobs[0][0], start(made), 1)
    rng = torch.Generator().manual_seed(1)
    common.theta["0.own"] = common.theta["0.own"] + 0.1 * torch.randn(common.theta["0.own"].shape, generator=rng)
    return way(made, common, work_of(jobs, list(range(10))))


def test_a_weighted_sum_at_the_features_is_that_of_the_slot(tmp_path):
    made, jobs = three(tmp_path)
    exact, near, w = at(made, jobs, Here), at(made, jobs, AtFeatures), torch.tensor([0.2, 0.5, 0.3])
    one, two = exact.point, near.point
    torch.testing.assert_close(two.losses(two.theta), one.losses(one.theta), rtol=1e-4, atol=1e-6)
    want = exact.toward(w @ one.grads(one.theta))
    found = near.toward(w @ two.grads(two.theta))
    assert want["0.own"].abs().max() > 0
    torch.testing.assert_close(found["0.own"], want["0.own"], rtol=1e-3, atol=1e-6)
    for a, b in zip(exact.heads, near.heads, strict=True):
        torch.testing.assert_close(a["W"].grad, b["W"].grad, rtol=1e-3, atol=1e-6)


def test_a_balance_at_the_features_is_of_the_gradients_there(tmp_path):
    made, jobs = three(tmp_path)
    here, pcgrad = at(made, jobs, AtFeatures), balancer("pcgrad")
    point = here.point
    rows = []
    for j, (job, _) in enumerate(jobs):
        z = here.z.detach().requires_grad_()
        head = {n: t.detach() for n, t in here.heads[j].items()}
        out = (z[:, : len(head["mean"])] - head["mean"]) * head["scale"] @ head["W"].mT + head["b"]
        job.kind.loss(out, job.parts["train"].y[:10], [1] * 10).mean().backward()
        rows.append(z.grad.flatten())
    torch.testing.assert_close(point.grads(point.theta), torch.stack(rows), rtol=1e-3, atol=1e-7)
    direction = pcgrad(None, point)[0]
    own = here.leaves["0.own"]
    want = torch.autograd.grad(here.z, own, direction.view_as(here.z), retain_graph=True)[0][1:]
    assert torch.equal(here.toward(direction)["0.own"], want)
    assert not torch.allclose(direction, torch.stack(rows).mean(0), rtol=1e-3)


def test_f_runs_once_a_step_whatever_the_number_of_tasks(tmp_path, monkeypatch):
    made, jobs = three(tmp_path)
    calls, run = [], made.adapted.forward
    monkeypatch.setattr(
        made.adapted, "forward", lambda inputs, *more: calls.append(len(inputs["attention_mask"])) or run(inputs, *more)
    )
    rows = {}
    for name, way in (("apart", Here), ("same", AtFeatures)):
        calls.clear()
        here = at(made, jobs, way)
        step(here, lift(lambda g: g.mean(0)), None)
        rows[name] = sum(calls)
    assert rows == {"apart": 30, "same": 10}


@pytest.mark.parametrize("name", [*sorted({*every("balance"), "pcgrad", "mgda", "aligned_mtl", "grad_vac", "grad_drop"}
                                          - {"covalign_mtl", "rep_mtl", "stg_mtl", "visatb", "codiemb"})])  # fmt: skip
def test_which_balances_can_be_at_the_features(tmp_path, name):
    """Those that need no more than the gradients and losses of one place; their states hold no directions."""
    made, jobs = three(tmp_path)
    way = way_of(made, jobs, balancer(name))
    assert stays(balancer(name), "abc") == (way.here is AtFeatures)
    assert (way.here is Here) == (name in FAR or name in ("modo", "sdmgrad")) and (way.most == 3 or way.here is Here)


def test_tasks_go_their_own_way_unless_all_their_texts_are_the_same(tmp_path):
    made, jobs = three(tmp_path)
    job, head = jobs[1]
    part = job.parts["train"]
    few = replace(job, parts=job.parts | {"train": replace(part, units=part.units[1:], y=part.y[1:], labels=part.labels[1:])})
    twice = replace(
        part, units=[part.units[0], *part.units], y=torch.cat([part.y[:1], part.y]), labels=[part.labels[0], *part.labels]
    )
    for other in (few, replace(job, parts=job.parts | {"train": twice})):
        way = way_of(made, [jobs[0], (other, head)], balancer("mean"))
        assert way.here is Here and not way.same and way.pairs[1][0].parts["train"].units == other.parts["train"].units
    assert way_of(made, jobs[:1], balancer("mean")).here is Here
    assert way_of(made, jobs, make("balance", "rep_mtl")).here.func is Once
    turned = replace(
        job, parts=job.parts | {"train": replace(part, units=part.units[::-1], y=part.y.flip(0), labels=part.labels[::-1])}
    )
    (one, _), (two, _) = way_of(made, [jobs[0], (turned, head)], balancer("mean")).pairs
    assert one.parts["train"].units == two.parts["train"].units and torch.equal(
        (one.parts["train"].y + 1) % 3, two.parts["train"].y
    )


def test_tasks_of_the_same_texts_train_together_and_go_on_where_they_were(tmp_path):
    made, jobs = three(tmp_path / "a")
    theta, learners = share(made, jobs, 3, balancer("pcgrad"), "k")
    assert [m.job for m in learners] == [job for job, _ in jobs] and not torch.equal(theta["0.own"], start(made)["0.own"])

    def told(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    again, same = three(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        share(again, same, 3, balancer("pcgrad"), "k", told)
    rest, _ = three(tmp_path / "b")
    found, others = share(rest, same, 3, balancer("pcgrad"), "k")
    assert all(torch.equal(found[n], theta[n]) for n in theta) and all(map(equal, others, learners))


def test_fit_tells_that_it_balances_at_the_features(tmp_path):
    rows = tiny.rows("classify", 60, seed=1)
    for name in ("colour", "warm"):
        said = [row if name == "colour" else row | {"label": str(row["label"] == "red")} for row in rows]
        place = tmp_path / "data" / name
        place.mkdir(parents=True)
        for split, part in (("train", said[:40]), ("valid", said[40:50]), ("test", said[50:])):
            tiny.lines(place / f"{split}.jsonl", part)
    plan = tiny.plan(tiny.home() / "bert", tmp_path / "data", ["colour", "warm"], balance="mgda")
    results = tiny.fit(plan, tmp_path / "run", steps=8)
    assert [n for n in results["notes"] if "have the same texts" in n] == [
        "colour, warm have the same texts: each goes through f once for all, and balance mgda works at the features"
    ]
    assert all(t["shared"] is not None for t in results["tasks"].values())
