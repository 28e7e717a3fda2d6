import math

import pytest
import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.errors import InputError
from anabranch.gate.task_aware import borrow


def test_by_hand():
    at = At(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 3), torch.ones(2, dtype=torch.bool))
    own = {"G": torch.tensor([[0.0, 1.0], [math.log(3), 0.0], [9.0, 9.0]])}
    e = math.e**2
    w = make("gate", {"task_aware": {"top": 2}}).weigh(own, {}, at, torch.tensor([True, True, False]))
    close(w, torch.tensor([[0.25, 0.75, 0.0], [e / (e + 1), 1 / (e + 1), 0.0]]))


@pytest.mark.parametrize("top", [1, 2])
def test_tasks_choose_for_themselves_and_a_token_keeps_its_share(top):
    """Two tasks, the same tokens: each takes the experts of its own router, at their share of the softmax over all."""
    torch.manual_seed(0)
    f, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(1, 3, 5)
    made = bank(f, {"lora": {"rank": 1, "alpha": 1.0}}, {"task_aware": {"top": top}}, at="0", slots=3, routes=3, spread=0.5)
    routers = [torch.randn(3, 5), torch.randn(3, 5)]
    for G in routers:
        made.add_gate({"0": {"G": G}})
    got = Adapted(f, [made])({"input": x.expand(2, -1, -1)}, Route.to([[1, 2, 3]] * 2, who=torch.tensor([1, 2])))
    for task, G in enumerate(routers):
        share = (x[0] @ G.mT).softmax(-1)
        for i, token in enumerate(x[0]):
            best = share[i].topk(top).indices.tolist()
            dy = sum(share[i, k] * token @ made.take(k + 1)["0"]["a"] @ made.take(k + 1)["0"]["b"] for k in best)
            close(got[task, i], f(token) + dy)
    assert not torch.allclose(got[0], got[1])


def test_a_new_task_borrows_the_router_of_the_nearest():
    f = nn.Sequential(nn.Linear(5, 4))
    made = bank(f, "offset", "task_aware", at="0", slots=2, routes=2)
    for i in range(3):
        made.add_gate({"0": {"G": torch.full((2, 5), float(i))}})
    seen = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    got = borrow(made, seen, torch.tensor([-5.0, 1.0]))
    assert got["0"]["G"].tolist() == [[2.0] * 5] * 2
    got["0"]["G"] += 1  # its own from now on
    assert made.tables["gate"].get(3)["0"]["G"].max() == 2
    with pytest.raises(InputError, match="a row for each of the 3 tasks with a router, got 2"):
        borrow(made, seen[:2], seen[0])


def test_the_choice_has_a_gradient_even_for_one_expert():
    f, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(2, 3, 5)
    made = bank(f, "offset", "task_aware", at="0", slots=3, routes=3)
    made.add_gate(made.gates(torch.Generator()))
    adapted = Adapted(f, [made])
    leaf = adapted.sources[0]["gate"] = made.tables["gate"].data.clone().requires_grad_()
    adapted({"input": x}, Route.to([[1, 2, 3]] * 2, who=torch.tensor([1, 1]))).square().sum().backward()
    assert leaf.grad[1].isfinite().all() and leaf.grad[1].any()
