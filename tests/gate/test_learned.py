import math

import pytest
import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.route import Route

AT = At(torch.ones(3, 2), torch.ones(3, 4), torch.ones(3, dtype=torch.bool))
ON = torch.tensor([True, True, True])


@pytest.mark.parametrize(("temperature", "want"), [(1.0, [0.25, 0.75]), (0.5, [0.1, 0.9]), (2.0, [0.36603, 0.63397])])
def test_by_hand(temperature, want):
    gate = make("gate", {"learned": {"temperature": temperature}})
    close(gate.weigh({"c": torch.tensor([0.0, math.log(3)])}, {}, AT, ON[:2]), torch.tensor(want), 1e-4)


def test_it_starts_even_and_shares_among_those_that_are_there():
    gate = make("gate", "learned")
    c = gate.own(None, 3, torch.Generator())
    close(gate.weigh(c, {}, AT, ON), torch.full((3,), 1 / 3))
    close(gate.weigh(c, {}, AT, torch.tensor([True, False, True])), torch.tensor([0.5, 0.0, 0.5]))


def test_its_choice_is_learned_with_the_deltas():
    f, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 3, 4)
    made = bank(f, "offset", "learned", at="0", routes=2)
    made.add_gate(made.gates(torch.Generator()))
    adapted = Adapted(f, [made])
    c = adapted.sources[0]["gate"] = made.tables["gate"].data.clone().requires_grad_()
    route = Route.to([[1, 2], [0, 0]], who=torch.tensor([1, 1]))
    target = f(x).detach() + made.take(2)["0"]["d"]
    optimiser = torch.optim.Adam([c], lr=0.3)
    for _ in range(30):
        optimiser.zero_grad()
        ((adapted({"input": x}, route) - target) ** 2)[0].mean().backward()
        assert c.grad.isfinite().all() and not c.grad[0].any()
        optimiser.step()
    assert c[1].softmax(0)[1] > 0.95


def test_a_row_without_slots_sends_no_gradient_and_no_nan():
    f, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(1, 3, 4)
    made = bank(f, "offset", "learned", at="0", routes=2)
    made.add_gate(made.gates(torch.Generator()))
    adapted = Adapted(f, [made])
    c = adapted.sources[0]["gate"] = made.tables["gate"].data.clone().requires_grad_()
    y = adapted({"input": x}, Route.to([[0, 0]], who=torch.tensor([1])))
    assert torch.equal(y, f(x))
    y.sum().backward()
    assert torch.equal(c.grad, torch.zeros_like(c))
