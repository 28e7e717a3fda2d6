import math

import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.route import Route

ON = torch.tensor([True, True])


def test_by_hand():
    """q(x) = (2, 0), logits 0, 2 ln 2, 4 over sqrt(4): shares of f, first and second domain."""
    gate = make("gate", {"mixda": {"size": 4}})
    own = {"Q": torch.eye(2, 4) * 2, "u": torch.tensor([[0.0, math.log(2), 2.0], *[[9.0] * 3] * 3])}
    at = At(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 3), torch.ones(1, dtype=torch.bool))
    e = math.e**2
    close(gate.weigh(own, {}, at, ON), torch.tensor([[2 / (3 + e), e / (3 + e)]]))
    close(gate.weigh(own, {}, at, torch.tensor([True, False])), torch.tensor([[2 / 3, 0.0]]))
    close(gate.weigh(own, {}, at, torch.tensor([False, False])), torch.zeros(1, 2))


def test_f_and_all_domains_start_alike():
    f = nn.Sequential(nn.Linear(4, 3))
    made = bank(f, "adapter", "mixda", at="0", slots=3, routes=3)
    at = At(torch.randn(5, 4), torch.zeros(5, 3), torch.ones(5, dtype=torch.bool))
    close(made.gate.weigh(made.gates(torch.Generator())["0"], {}, at, torch.tensor([True] * 3)), torch.full((5, 3), 0.25))


def test_a_mixture_of_f_and_f_with_each_domain_and_then_the_task_s_own_adapter():
    """The second stage, as its parts: sum of shares times whole layers, then the task's adapter on top of that."""
    torch.manual_seed(0)
    f, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(2, 3, 6)
    domains = bank(f, "adapter", "mixda", at="0", slots=2, routes=2, spread=0.5)
    gates = {"0": {"Q": torch.randn(6, 16), "u": torch.randn(16, 3)}}
    domains.add_gate(gates)
    task = bank(f, "adapter", at="0", slots=1, spread=0.5, stage=1)
    got = Adapted(f, [domains, task])({"input": x}, [Route.to([[1, 2]] * 2, who=torch.tensor([1, 1])), Route.to([1, 1])])

    def adapter(made, slot, y):
        p = made.take(slot)["0"]
        return torch.relu(y @ p["down"]) @ p["up"]

    share = (x @ gates["0"]["Q"] @ gates["0"]["u"] / 4).softmax(-1)
    whole = [f(x), *(f(x) + adapter(domains, i, f(x)) for i in (1, 2))]
    mixed = sum(share[..., i : i + 1] * y for i, y in enumerate(whole))
    close(got, mixed + adapter(task, 1, mixed))


def test_the_gate_learns_which_domain_a_token_is_of():
    torch.manual_seed(0)
    f = nn.Sequential(nn.Linear(4, 4))
    made = bank(f, "offset", "mixda", at="0", slots=2, routes=2, spread=1.0)
    made.add_gate(made.gates(torch.Generator().manual_seed(0)))
    x = torch.randn(32, 4, 4)
    kind = torch.where(x[..., :1] > 0.3, 1, torch.where(x[..., :1] < -0.3, 2, 0))  # of domain 1, of domain 2, general
    target = f(x).detach() + (kind == 1) * made.take(1)["0"]["d"] + (kind == 2) * made.take(2)["0"]["d"]
    adapted = Adapted(f, [made])
    leaf = adapted.sources[0]["gate"] = made.tables["gate"].data.clone().requires_grad_()
    route, optimiser = Route.to([[1, 2]] * 32, who=torch.ones(32, dtype=torch.long)), torch.optim.Adam([leaf], lr=0.05)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = ((adapted({"input": x}, route) - target) ** 2).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 3
