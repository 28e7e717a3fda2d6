"""ScaLearn-Uniform: scales on the outputs of frozen adapters, whatever they are."""

import torch
from laws._nasty import close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import find

F = nn.Sequential(nn.Linear(4, 3))
X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def library() -> Bank:
    rng = torch.Generator().manual_seed(1)
    bank = Bank.make(make("delta", {"adapter": {"size": 2}}), make("gate", "scalearn"), find(F, "0"), rng, routes=2)
    bank.add([bank.fresh(rng) for _ in range(2)])
    bank.tables["own"].data[1:] += torch.randn(bank.tables["own"].data[1:].shape, generator=rng)
    bank.add_gate(bank.gates(rng))
    return bank


def answer(bank: Bank) -> torch.Tensor:
    return Adapted(F, [bank])({"input": X}, Route.to([[1, 2]] * 2, who=torch.ones(2, dtype=torch.long)))


def outputs(bank: Bank) -> list[torch.Tensor]:
    y = F(X)
    return [torch.relu(y @ p["down"]) @ p["up"] for p in (bank.take(1)["0"], bank.take(2)["0"])]


def test_it_starts_from_the_mean_of_the_adapters_and_scales_their_outputs():
    bank = library()
    a, b = outputs(bank)
    close(answer(bank), F(X) + (a + b) / 2)
    bank.tables["gate"].data[1] = torch.tensor([2.0, -0.5])  # no softmax, no sum to 1
    close(answer(bank), F(X) + 2 * a - 0.5 * b)


def test_the_scales_alone_learn_and_reach_least_squares():
    bank = library()
    adapted, target = Adapted(F, [bank]), torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    omega = adapted.sources[0]["gate"] = bank.tables["gate"].data.clone().requires_grad_()
    adam = torch.optim.Adam([omega], 0.05)
    for _ in range(300):
        adam.zero_grad()
        y = adapted({"input": X}, Route.to([[1, 2]] * 2, who=torch.ones(2, dtype=torch.long)))
        (y - target).square().sum().backward()
        adam.step()
    a, b = (o.detach().flatten() for o in outputs(bank))
    close(
        omega[1].detach(),
        torch.linalg.lstsq(torch.stack([a, b], 1), (target - F(X)).detach().flatten()[:, None]).solution[:, 0],
        1e-3,
    )
