"""DB-MTL, dual balancing of losses and gradients (Lin et al. 2023, arXiv:2308.12029).

    h_t = d log L_t / d theta;  m_t <- h_t + beta / k^power (m_t - h_t) at the task's k-th step, m_t from 0
    g = sum_t m_t max_s |m_s| / |m_t|

``beta``: of the moving average. ``power``: how fast it fades.
"""

from typing import Any

import torch
from torch import Tensor

from anabranch.balance._common import State, gradients, keep, positive, recall
from anabranch.core.balance import Point
from anabranch.types import Fraction, NonNegative

EPS = 1e-8


def db_mtl(state: State, point: Point, *, beta: Fraction = 0.9, power: NonNegative = 0.0) -> tuple[Tensor, dict[str, Any]]:
    losses, names = positive(point), point.names
    step = recall(state, "step", names) + 1
    was = recall(state, "mean", names, torch.zeros_like(point.theta))
    mean = (gradients(point) / (losses[:, None] + EPS)).lerp_(was, (beta / step**power)[:, None])
    norms = mean.norm(dim=1)
    weights = norms.max() / (norms + EPS)
    return weights @ mean, dict(state or {}) | keep("step", names, step) | keep("mean", names, mean)
