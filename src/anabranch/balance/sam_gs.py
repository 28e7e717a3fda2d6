"""SAM-GS, similarity-aware momentum gradient surgery (Borsani et al. 2025, arXiv:2506.06130).

    s = mean over pairs of 2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2);   m_t, v: moving averages of g_t and of (1 - s)^2, unbiased
    s < threshold:  g = (mean_s |g_s|) sum_t g_t / |g_t|      otherwise:  g = sum_t g_t * |m_t| / sqrt(v)

so magnitudes are made equal only where they conflict; else the entries on which a task's gradients agree over time count more.
Angles do not matter. ``threshold``: least similarity without surgery. ``beta1``, ``beta2``: of the moving averages.
"""

from typing import Any

import torch
from torch import Tensor

from anabranch.balance._common import State, gradients, keep, recall
from anabranch.core.balance import Point
from anabranch.types import Fraction, Share

rows = ("sam-gs",)


def sam_gs(
    state: State, point: Point, *, threshold: Share = 0.7, beta1: Fraction = 0.9, beta2: Fraction = 0.99
) -> tuple[Tensor, dict[str, Any]]:
    grads, names, calls = gradients(point), point.names, int((state or {}).get("calls", 0)) + 1
    s = similarity(grads.norm(dim=1))
    step = recall(state, "step", names) + 1
    m = beta1 * recall(state, "m", names, torch.zeros_like(point.theta)) + (1 - beta1) * grads
    v = beta2 * (state or {}).get("v", 0.0) + (1 - beta2) * (1 - float(s)) ** 2 + 1e-8
    new = dict(state or {}) | keep("step", names, step) | keep("m", names, m) | {"v": v, "calls": calls}
    if s < threshold:
        return equalised(grads), new
    m = m / (1 - beta1**step)[:, None]
    return (grads * m.abs()).sum(0) / (v / (1 - beta2**calls)) ** 0.5, new


def similarity(norms: Tensor) -> Tensor:
    """norms [t] -> the mean over pairs, in [0, 1]; 1 where both are 0, and for one task."""
    unit = norms / norms.max().clamp(min=1e-38)  # squares of tiny norms would be 0
    i, j = torch.triu_indices(len(norms), len(norms), 1)
    both = unit[i].square() + unit[j].square()
    pairs = torch.where(both > 0, 2 * unit[i] * unit[j] / both.clamp(min=1e-38), 1.0)
    return pairs.mean() if len(pairs) else torch.ones(())


def equalised(grads: Tensor) -> Tensor:
    """[t, n] -> [n]: all of the mean norm, summed; a task without a gradient adds nothing."""
    norms = grads.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, grads / norms.clamp(min=1e-38) * norms.mean(), 0.0).sum(0)
