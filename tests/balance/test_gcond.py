import math

import torch
from laws._nasty import close
from laws.balance import point

from anabranch.balance.gcond import angle, order, resolved
from anabranch.core.names import make

NAMES = ["a", "b"]


def resolve(rows, last=None, norms=None, won=()):
    rows = torch.tensor(rows)
    last = torch.zeros_like(rows) if last is None else torch.tensor(last)
    return resolved(rows, last, torch.ones(len(rows)) if norms is None else torch.tensor(norms), NAMES, list(won), 3)


def test_the_angle_of_a_conflict():
    close(torch.tensor([angle(c) for c in (0.0, -0.25, -0.5, -0.65, -0.8, -1.0)]),
          torch.tensor([0.0, math.pi / 4, math.pi / 2, math.pi / 2 * 1.25, math.pi, math.pi]))  # fmt: skip


def test_agreement_is_left_alone():
    rows = [[1.0, 0.0], [1.0, 2.0]]
    kept, won = resolve(rows)
    assert torch.equal(kept, torch.tensor(rows)) and not won


def test_the_worst_conflict_costs_the_loser_alone():
    kept, won = resolve([[4.0, 0.0], [-1.0, 0.1]])
    assert won == ["a"]  # the stronger one
    close(kept, torch.tensor([[4.0, 0.0], [0.0, 0.1]]))


def test_at_minus_a_half_both_are_projected():
    g, h = torch.tensor([1.0, 0.0]), torch.tensor([-0.5, math.sqrt(0.75)])
    kept, _ = resolve([g.tolist(), h.tolist()])
    assert abs(kept[0] @ h) < 1e-5 and abs(kept[1] @ g) < 1e-5


def test_the_stable_one_wins_and_after_three_times_it_loses():
    rows, last = torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert order(0, 1, rows, last, torch.ones(2), NAMES, [], 3) == (0, 1)
    assert order(0, 1, rows, last, torch.ones(2), NAMES, ["a"] * 3, 3) == (1, 0)
    assert order(0, 1, rows, torch.zeros(2, 2), torch.ones(2), NAMES, [], 3) == (1, 0)


def test_no_direction_until_the_gradients_are_gathered():
    method, state = make("balance", {"gcond": {"steps": 3, "beta": 0.0}}), None
    rows = torch.randn(3, 2, 5).abs()  # no conflict
    for step in range(2):
        found, state = method(state, point(rows[step]))
        assert found is None
    found, state = method(state, point(rows[2]))
    close(found, rows.mean(0).sum(0))


def test_one_task_a_call_is_the_stochastic_mode():
    method, state = make("balance", {"gcond": {"steps": 4, "beta": 0.0}}), None
    rows = torch.randn(2, 2, 5).abs()
    for micro in rows:
        for row, name in zip(micro, NAMES, strict=True):
            found, state = method(state, point(row[None], [name]))
    close(found, rows.mean(0).sum(0))
    assert not [key for key in state if key.startswith("sum:")]
