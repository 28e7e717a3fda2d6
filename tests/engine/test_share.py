"""One slot that all tasks train, and what tasks have in common."""

import math
from dataclasses import replace

import pytest
import torch
from engine.test_train import equal, trainer

from anabranch.core.balance import lift
from anabranch.engine.balanced import expand, gradients
from anabranch.engine.share import relate, rounds, share, start
from anabranch.engine.train import Learner


def mean(grads: torch.Tensor) -> torch.Tensor:
    return grads.mean(0)


def test_rounds_take_a_batch_of_each_task_while_it_has_any():
    a, b, c = [[1], [2], [3]], [[4]], [[5], [6]]
    assert rounds([a, b, c]) == [[(0, [1]), (1, [4]), (2, [5])], [(0, [2]), (2, [6])], [(0, [3])]]
    many = rounds([[[0]] for _ in range(19)])
    assert [len(r) for r in many] == [7, 6, 6] and sorted(j for r in many for j, _ in r) == list(range(19))


def test_of_many_tasks_every_two_meet_and_each_is_seen_as_often():
    batches = [[[n] for n in range(5)] for _ in range(16)]
    passes = [rounds(batches, 8, 0, epoch) for epoch in range(5)]
    assert passes == [rounds(batches, 8, 0, epoch) for epoch in range(5)] and passes[0] != passes[1] != rounds(batches, 8, 1, 1)
    met = {(a, b) for steps in passes for step in steps for a, _ in step for b, _ in step}
    assert len(met) == 16 * 16 and all(len(step) == 8 for steps in passes for step in steps)
    for steps in passes:  # each task's batches once and in their own order
        assert all([rows for step in steps for j, rows in step if j == task] == batches[task] for task in range(16))
    assert rounds(batches, 1)[:16] == [[(j, [0])] for j in range(16)]  # where none meet, in turn


def test_gradients_of_each_task_come_from_one_backward(tmp_path):
    made, jobs = trainer(tmp_path, "classify", "tag", "choice")
    theta = start(made)
    heads = [head for _, head in jobs]
    work = [(Learner(job, {f"head.{n}": t for n, t in head.items()}, 1), list(range(12))) for job, head in jobs]
    leaves = expand(made, theta, 3)
    torch.stack(made.losses(work, heads, [1, 2, 3])).sum().backward()
    together = gradients(leaves, 3)
    for j in range(3):
        leaves = expand(made, theta, 1)
        made.losses([work[j]], [heads[j]], [1])[0].backward()
        torch.testing.assert_close(gradients(leaves, 1)[0], together[j], rtol=1e-4, atol=1e-7)
    assert together.abs().sum(1).min() > 0


def test_relate_is_symmetric_and_its_order_free(tmp_path):
    made, jobs = trainer(tmp_path, "classify", "tag", "retrieve", "pair")
    whole = relate(made, jobs)
    assert torch.equal(whole, whole.T) and whole.abs().max() <= 1
    torch.testing.assert_close(whole.diag(), torch.ones(4))
    other = relate(made, jobs[::-1])
    torch.testing.assert_close(other.flip(0, 1), whole, rtol=0, atol=1e-5)


def test_the_same_task_twice_is_related_and_its_opposite_is_not(tmp_path):
    """All 64 rows are seen, in another order; with the numbers turned round, a first step helps one and harms the other."""
    made, [(job, head)] = trainer(tmp_path, "regress")
    turned = {n: replace(p, y=-p.y) for n, p in job.parts.items()}
    flat = head | {"b": head["b"] * 0}  # at 0 for all, where the gradients of y and -y are opposed
    flat["W"] = head["W"] * 1e-3
    opposed = flat | {"W": flat["W"]}
    found = relate(made, [(job, flat), (replace(job, name="again"), flat), (replace(job, name="turned", parts=turned), opposed)])
    assert found[0, 1] > 0.99 and found[0, 2] < -0.9


def test_sharing_trains_the_slot_and_all_heads(tmp_path):
    made, jobs = trainer(tmp_path, "classify", "tag", "retrieve")
    before, told = start(made), []
    theta, learners = share(made, jobs, 3, lift(mean), "k", lambda done, of: told.append((done, of)))
    assert told == [(1, 3), (2, 3), (3, 3)] and all(not torch.equal(t, before[n]) for n, t in theta.items() if t.numel())
    assert [m.job.name for m in learners] == ["classify", "tag", "retrieve"]
    for learner, (_, head) in zip(learners, jobs, strict=True):
        assert learner.head.keys() == head.keys() and all(
            torch.equal(learner.head[n], head[n]) is (n in ("mean", "scale")) for n in head
        )


def test_sharing_goes_on_where_it_was(tmp_path):
    made, jobs = trainer(tmp_path / "a", "classify", "pair")
    theta, learners = share(made, jobs, 4, lift(mean), "k")
    for stop in (1, 3):

        def told(done: int, of: int, stop: int = stop) -> None:
            if done == stop:
                raise KeyboardInterrupt

        again, same_jobs = trainer(tmp_path / f"{stop}", "classify", "pair")
        with pytest.raises(KeyboardInterrupt):
            share(again, same_jobs, 4, lift(mean), "k", told)
        rest, _ = trainer(tmp_path / f"{stop}", "classify", "pair")
        found, others = share(rest, same_jobs, 4, lift(mean), "k")
        assert all(torch.equal(found[n], theta[n]) for n in theta) and all(map(equal, others, learners))
    saved = made.folder / "shared-k.safetensors"
    saved.write_bytes(saved.read_bytes()[:-9])
    found, _ = share(made, jobs, 4, lift(mean), "k")
    assert all(torch.equal(found[n], theta[n]) for n in theta)


def test_the_balancer_decides_the_direction(tmp_path):
    made, jobs = trainer(tmp_path, "classify", "pair")
    seen = []

    def only_first(state, point):
        grads = point.grads(point.theta)
        seen.append((state, grads.shape, point.names, point.losses(point.theta).shape))
        return grads[0], (state or 0) + 1

    theta, _ = share(made, jobs, 1, only_first, "first")
    n = sum(t.numel() for t in theta.values())
    assert seen[0] == (None, (2, n), ["classify", "pair"], (2,)) and [s[0] for s in seen] == [None, 1]
    still, _ = share(made, jobs, 1, lambda state, point: (None, state), "none")
    assert all(torch.equal(still[n], t) for n, t in start(made).items())


def test_what_diverges_says_so(tmp_path):
    made, jobs = trainer(tmp_path, "classify", "pair")
    jobs[0][1]["W"] *= math.nan
    with pytest.raises(FloatingPointError, match="diverged in pass 1"):
        share(made, jobs, 1, lift(mean), "k")
    assert not (made.folder / "shared-k.safetensors").exists()
