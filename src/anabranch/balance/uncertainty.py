"""Uncertainty weighting (Kendall et al. 2018, arXiv:1705.07115).

    L = sum_t exp(-s_t) L_t / 2 + s_t / 2,   s_t = log sigma_t^2 learned with the model, from 0

so a task of large loss gets a small weight: at the optimum of s_t it is 1 / (2 L_t).
``lr``: of Adam on s.
"""

from typing import Any

from torch import Tensor

from anabranch.balance._common import State, adam, gradients, recall
from anabranch.core.balance import Point
from anabranch.types import Positive


def uncertainty(state: State, point: Point, *, lr: Positive = 0.01) -> tuple[Tensor, dict[str, Any]]:
    losses = point.losses(point.theta).detach().float()
    weights = (-recall(state, "w", point.names)).exp() / 2
    return weights @ gradients(point), dict(state or {}) | adam(state, point.names, 0.5 - weights * losses, lr)[1]
