"""flat-MTL: sharpness-aware per task, losses and flatness balanced apart (Phan et al. 2022, arXiv:2211.13723).

    h_t = gradient of L_t at theta + rho g_t / |g_t|;   g = A(g_1 ... g_T) + A(h_1 - g_1 ... h_T - g_T)

A: any balancer, with a state of its own for each of the two. All h_t come from one pass, each task at its own theta.
``inner``: A. ``rho``: how far to look, in the norm of theta.
"""

from typing import Any

import torch
from torch import Tensor

from anabranch.balance._common import State, gradients, within
from anabranch.core.balance import Point
from anabranch.types import Balance, Positive

rows = ("flat-mtl",)


def flat_mtl(
    state: State, point: Point, *, inner: Balance = "pcgrad", rho: Positive = 0.05
) -> tuple[Tensor | None, dict[str, Any]]:
    grads = gradients(point)
    away = point.theta + rho * torch.nn.functional.normalize(grads, dim=1, eps=1e-30)  # [r, n]: each task at its own
    flat = gradients(point._replace(theta=away)) - grads
    low, first = within(inner, state, "loss", point._replace(grads=lambda _: grads))
    even, second = within(inner, state, "flat", point._replace(grads=lambda _: flat))
    return (None if low is None or even is None else low + even), first | second
