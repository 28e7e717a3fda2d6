"""samo and flat_mtl, which look at losses elsewhere: on quadratic losses whose numbers are known."""

import torch
from laws._nasty import close
from torch.nn.functional import normalize

from anabranch.balance.samo import joint
from anabranch.core.balance import Point
from anabranch.core.names import make

H, G = torch.tensor([1.0, 4.0])[:, None], torch.tensor([[3.0, 4.0], [0.0, 2.0]])


def quadratic(theta=None, record=None) -> Point:
    """L_t = h_t/2 |theta|^2 + g_t . theta; theta [n] or [r, n]."""
    theta = torch.zeros(2) if theta is None else theta
    losses = lambda p: (H / 2 * p.square() + G * p).sum(1)  # noqa: E731

    def grads(p):
        (record if record is not None else []).append(p)
        return H * p + G

    return Point(theta, losses, grads, ["a", "b"])


def test_flat_mtl_on_the_mean_is_the_mean_of_the_gradients_further_up():
    found, _ = make("balance", {"flat_mtl": {"inner": "mean", "rho": 0.5}})(None, quadratic())
    there = H * 0.5 * normalize(G, dim=1) + G
    close(found, there.mean(0))


def test_flat_mtl_balances_the_two_parts_apart():
    found, _ = make("balance", {"flat_mtl": {"inner": "imtl_g", "rho": 0.5}})(None, quadratic())
    flat = H * 0.5 * normalize(G, dim=1)
    imtl = make("balance", "imtl_g")
    parts = [imtl(None, quadratic()._replace(grads=lambda _, rows=rows: rows))[0] for rows in (G, flat)]
    close(found, parts[0] + parts[1])
    whole = imtl(None, quadratic()._replace(grads=lambda _: G + flat))[0]
    assert not torch.allclose(found, whole)


def test_both_parts_remember_by_themselves():
    method = make("balance", {"flat_mtl": {"inner": {"excess_mtl": {}}}})
    _, state = method(None, quadratic())
    assert {key.split("/")[0] for key in state} == {"loss", "flat"}
    first, second = (state[f"{part}/calls"] for part in ("loss", "flat"))
    assert first == second == 1 and method(state, quadratic())[1]["loss/calls"] == 2


def test_two_passes_whatever_the_number_of_tasks():
    for spec in ({"flat_mtl": {"inner": "mean"}}, {"samo": {}}):
        record = []
        make("balance", spec)(None, quadratic(record=record))
        assert len(record) == 2 and record[1].shape == (2, 2)  # each task at its own theta


def test_samo_without_a_local_part_is_sharpness_aware_in_the_mean():
    record = []
    found, _ = make("balance", {"samo": {"beta": 0.0, "rho": 0.5}})(None, quadratic(record=record))
    away = 0.5 * normalize(G.mean(0), dim=0)
    close(record[1], away.expand(2, 2))
    close(found, (H * away + G).mean(0))


def test_samo_estimates_a_tasks_gradient_from_two_losses():
    """The estimate (g . z) z points at most a right angle from g, and has g0's length in the sum."""
    record, rho = [], 1e-2
    make("balance", {"samo": {"beta": 0.999, "rho": rho}})(None, quadratic(record=record))
    close(record[1].norm(dim=1), torch.full((2,), rho))
    assert ((record[1] * G).sum(1) > 0).all()


def test_the_local_part_has_the_global_ones_length_in_each_tensor():
    g0, local = torch.tensor([3.0, 4.0, 2.0]), torch.tensor([[0.0, 9.0, -7.0]])
    close(joint(g0, local, 0.5, [2, 1]), torch.tensor([[1.5, 2.0 + 2.5, 1.0 - 1.0]]))
    close(joint(g0, 1e9 * local, 0.5, [2, 1]), joint(g0, local, 0.5, [2, 1]))


def test_a_stateful_inner_balancer_keeps_its_state():
    method, state = make("balance", {"samo": {"inner": {"gcond": {"steps": 2}}}}), None
    first, state = method(state, quadratic())
    assert first is None and state["inner/calls"] == 1
    second, state = method(state, quadratic())
    assert second is not None and state["calls"] == 2
