"""One LoRA for six text tasks of 256 rows whose losses are scaled 1 and 100 in turn: SAM-GS against equal weights on the
unscaled losses, task by task, and its worst task against PCGrad's. Beside it the two-task toy that the field measures balancers
on (Liu et al. 2021): whether Adam along SAM-GS ends within 0.05 of the Pareto front in both losses, from five starts."""

from typing import Any

import torch
from torch import Tensor

from anabranch.claims._balance import Scaled, worst
from anabranch.core.balance import Point
from anabranch.engine.share import balancer

holds = ("sam_gs >= unscaled - 0.01", "worst_sam_gs > worst_pcgrad", "front >= 1.0")
STARTS = ((-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0))
STEPS, RATE, NEAR = 2500, 0.05, 0.05


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(6, rows=256)
    by = {name: (1.0, 100.0)[i % 2] for i, name in enumerate(suite.jobs)}
    found = {way: suite.shared("lora", balance=Scaled(spec, by)).scores()
             for way, spec in (("sam_gs", "sam_gs"), ("pcgrad", "pcgrad"), ("equal", "equal"))}  # fmt: skip
    found |= {"unscaled": suite.shared("lora", balance="equal").scores(), "probe": suite.probe()}
    found |= {f"worst_{way}": worst(found[way]) for way in ("sam_gs", "pcgrad", "unscaled")}
    return found | {"front": {f"from {a:g}, {b:g}": reached(torch.tensor([a, b])) for a, b in STARTS}}


def toy(theta: Tensor) -> Tensor:
    """theta [2] -> two losses, whose front is theta_2 = -8, |theta_1| <= 7."""
    a, b = theta
    above, below = torch.tanh(0.5 * b).clamp(0, 1), torch.tanh(-0.5 * b).clamp(0, 1)
    steep = torch.tanh(-b)
    wide = [((0.5 * (s - a) + steep * t + shift).abs().clamp(min=5e-6)).log() + 6 for s, t, shift in ((-7, -1, 0), (3, 1, 2))]
    near = [((s - a) ** 2 + 0.1 * (-b - 8) ** 2) / 10 - 20 for s in (7, -7)]
    return torch.stack([above * f + below * g for f, g in zip(wide, near, strict=True)])


def reached(theta: Tensor) -> float:
    """1 where neither loss at the end is worse than at the nearest point of the front, by more than NEAR; else 0."""
    balance, state = balancer("sam_gs"), None
    theta = torch.nn.Parameter(theta)
    adam = torch.optim.Adam([theta], RATE)
    for _ in range(STEPS):
        losses = toy(theta)
        grads, values = torch.stack([torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses]), losses.detach()
        point = Point(theta.detach(), lambda _, v=values: v, lambda _, g=grads: g, ["a", "b"])  # type: ignore[misc]
        direction, state = balance(state, point)
        theta.grad = direction
        adam.step()
    front = torch.tensor([float(theta.detach()[0].clamp(-7, 7)), -8.0])
    with torch.no_grad():
        return float(bool((toy(theta) - toy(front) < NEAR).all()))
