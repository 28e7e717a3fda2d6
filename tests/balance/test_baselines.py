"""equal, uncertainty, dwa, rlw, famo, db_mtl on numbers worked by hand."""

import math

import torch
from laws._nasty import close
from laws.balance import point

from anabranch.core.names import find, make

EYE = torch.eye(2)


def weights(name, state=None, losses=1.0, **settings):
    """The weights of two tasks, read off unit gradients."""
    return make("balance", {name: settings})(state, point(EYE, losses=losses))


def test_equal_is_the_sum():
    rows = torch.randn(3, 5)
    close(find("balance.equal")(rows), 3 * find("balance.mean")(rows))


def test_uncertainty_starts_at_a_half_and_ends_at_half_the_inverse_loss():
    found, state = weights("uncertainty")
    close(found, torch.tensor([0.5, 0.5]))
    losses = torch.tensor([0.5, 4.0])
    for _ in range(1500):
        found, state = weights("uncertainty", state, losses)
    close(found, 1 / (2 * losses), 1e-3)


def test_dwa_looks_at_how_fast_losses_fall():
    state = None
    for losses in ([1.0, 1.0], [1.0, 1.0], [0.5, 1.0]):
        found, state = weights("dwa", state, torch.tensor(losses), window=2, temperature=1.0)
        close(found, torch.ones(2))
    found, _ = weights("dwa", state, torch.tensor([0.5, 1.0]), window=2, temperature=1.0)
    e = [math.exp(0.5), math.exp(1.0)]  # losses fell to a half, and not at all
    close(found, torch.tensor([2 * x / sum(e) for x in e]))


def test_rlw_draws_anew_at_each_step():
    first, state = weights("rlw")
    second, _ = weights("rlw", state)
    assert not torch.allclose(first, second) and not torch.allclose(first, weights("rlw", seed=1)[0])
    close(first.sum(), torch.tensor(1.0))
    draws, state = [], None
    for _ in range(2000):
        found, state = weights("rlw", state)
        draws.append(found)
    assert abs(torch.stack(draws).mean(0)[0] - 0.5) < 0.03


def test_famo_divides_by_the_loss_and_turns_to_the_task_that_falls_least():
    found, state = weights("famo", None, torch.tensor([1.0, 3.0]))
    close(found, torch.tensor([0.75, 0.25]))  # 1/1 : 1/3
    found, _ = weights("famo", state, torch.tensor([1.0, 1.0]), decay=0.0)
    assert found[0] > 0.5 > found[1]  # the second fell from 3
    close(found, torch.tensor([-0.025, 0.025]).neg().softmax(0), 1e-4)  # Adam's first step is lr


def test_db_mtl_makes_all_gradients_as_long_as_the_longest():
    rows = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    losses = torch.tensor([1.0, 0.5])  # of the logarithms: [3, 0] and [0, 8]
    found, state = make("balance", {"db_mtl": {"beta": 0.5}})(None, point(rows, losses=losses))
    close(found, torch.tensor([4.0, 4.0]), 1e-4)
    found, _ = make("balance", {"db_mtl": {"beta": 0.5}})(state, point(rows, losses=losses))
    close(found, torch.tensor([6.0, 6.0]), 1e-4)  # half of what was, half of what is
