"""Five text tasks with 30 % wrong labels over one hidden layer of 16 units on frozen features (a toy: f itself stays), batches
of eight rows: GCond, whose directions are of four batches, against PCGrad on every batch, by the mean loss on clean test rows
after equally many rows; and its stochastic mode, one task a batch, at half the backward passes. Rates by validation loss."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from anabranch.claims._balance import noisy
from anabranch.core.balance import Point
from anabranch.engine.passes import seeded
from anabranch.engine.share import balancer

holds = ("gcond < pcgrad", "stochastic <= gcond + 0.02", "backwards <= 0.5")
UNITS, BATCH, ROUNDS, STEPS = 16, 8, 240, 4
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite([noisy(lab, task) for task in lab.tasks(5, rows=256)])
    data = {name: [rows_of(suite, name, split) for split in ("train", "valid", "test")] for name in suite.jobs}
    t = len(data)
    half = STEPS * t // 2
    ways = {"pcgrad": ("pcgrad", False), "gcond": ({"gcond": {"steps": STEPS}}, False),
            "stochastic": ({"gcond": {"steps": half}}, True), "equal": ("equal", False)}  # fmt: skip
    out, passes = {}, {}
    for way, (spec, alone) in ways.items():
        found = [trained(lab, data, spec, rate, alone) for rate in RATES]
        out[way] = min(found, key=lambda one: sum(one[0].values()))[1]
        passes[way] = found[0][2]
    return out | {"backwards": {"stochastic of the full mode's": passes["stochastic"] / passes["gcond"]}}


def rows_of(suite: Any, name: str, split: str) -> tuple[Tensor, Tensor]:
    job, head = suite.jobs[name], suite.heads[name]
    d, part = len(head["mean"]), job.parts[split]
    x = suite.features.vectors[[row[0] for row in part.units]][:, :d]
    return ((x - head["mean"]) * head["scale"])[:, : suite.features.backbone.d], part.y


def trained(lab: Any, data: Any, spec: Any, rate: float, alone: bool) -> tuple[dict[str, float], dict[str, float], int]:
    """Validation losses, test losses, backward passes; every task's head takes a step of its own with each of its batches."""
    names, balance, state = list(data), balancer(spec), None
    d, rng = data[names[0]][0][0].shape[1], seeded(lab.seed, "gcond")
    shared = torch.nn.Parameter(torch.randn(d, UNITS, generator=rng) / d**0.5)
    heads = {n: torch.nn.Parameter(torch.zeros(UNITS, 1 + int(max(y.max() for _, y in data[n])))) for n in names}
    for n in names:
        heads[n].data += torch.randn(heads[n].shape, generator=rng) / UNITS**0.5
    first, second = torch.optim.Adam([shared], rate), torch.optim.Adam(heads.values(), 1e-2)
    rounds = len(names) * ROUNDS // 2 if alone else ROUNDS
    passes = 0
    for i in range(rounds):
        here = [names[i % len(names)]] if alone else names
        copies = shared.detach().expand(len(here), -1, -1).clone().requires_grad_()
        losses = []
        for copy, n in zip(copies, here, strict=True):
            x, y = data[n][0]
            pick = torch.randint(len(x), (BATCH,), generator=rng)
            losses.append(cross_entropy(torch.relu(x[pick] @ copy) @ heads[n], y[pick]))
        second.zero_grad()
        torch.stack(losses).sum().backward()
        second.step()
        passes += len(here)
        assert copies.grad is not None
        grads, values = copies.grad.flatten(1), torch.stack(losses).detach()
        point = Point(shared.detach().flatten(), lambda _, v=values: v, lambda _, g=grads: g, here)  # type: ignore[misc]
        direction, state = balance(state, point)
        if direction is not None:
            shared.grad = direction.view_as(shared)
            first.step()
    with torch.no_grad():

        def loss(n: str, k: int) -> float:
            x, y = data[n][k]
            return float(cross_entropy(torch.relu(x @ shared) @ heads[n], y))

        return {n: loss(n, 1) for n in names}, {n: loss(n, 2) for n in names}, passes
