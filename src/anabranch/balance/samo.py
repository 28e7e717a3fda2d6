"""SAMO: sharpness-aware with a joint global and local perturbation (Ban et al. 2025, arXiv:2507.07883).

    g0 = mean_t g_t;   e_t = (L_t(theta + mu z_t) - L_t(theta - mu z_t)) / (2 mu) z_t,  z_t ~ N(0, 1)
    d_t = (1 - beta) g0 + beta |g0| e_t / |e_t|  in each tensor of theta apart
    g = A(gradients of L_t at theta + rho d_t / |d_t|)

Two forward passes and two backward passes for all tasks. ``inner``: the balancer A. ``rho``: how far to look. ``beta``: share of
the local part. ``mu``: step of the estimate. ``seed``: of z.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from anabranch.balance._common import State, draw, gradients, within
from anabranch.core.balance import Point
from anabranch.types import Balance, Fraction, Positive

rows = ("samo",)


def samo(
    state: State, point: Point, *, inner: Balance = "mean", rho: Positive = 0.05, beta: Fraction = 0.1, mu: Positive = 0.01,
    seed: int = 0,
) -> tuple[Tensor | None, dict[str, Any]]:  # fmt: skip
    theta = point.theta
    z, calls = draw(state, seed, "samo", len(point.names), len(theta))
    z = z.to(theta)
    slope = (point.losses(theta + mu * z) - point.losses(theta - mu * z)).detach() / (2 * mu)
    d = joint(gradients(point).mean(0), slope[:, None] * z, beta, [len(theta)])
    away = point._replace(theta=theta + rho * normalize(d, dim=1, eps=1e-30))  # [r, n]: each task at its own
    there = gradients(away)
    direction, held = within(inner, state, "inner", point._replace(grads=lambda _: there))
    return direction, calls | held


def joint(g0: Tensor, local: Tensor, beta: float, sizes: list[int]) -> Tensor:
    """g0 [n], local [t, n] -> d [t, n]: the local part has g0's norm in each of the tensors of these sizes."""
    parts = zip(g0.split(sizes), local.split(sizes, 1), strict=True)
    return torch.cat([(1 - beta) * g + beta * g.norm() * normalize(e, dim=1, eps=1e-30) for g, e in parts], 1)
