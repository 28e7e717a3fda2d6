"""FAMO, fast adaptive multitask optimisation (Liu et al. 2023, arXiv:2306.03792).

    D_t = L_t - floor;  z = softmax(w);  g = c sum_t z_t g_t / D_t,  c = 1 / sum_t z_t / D_t
    w <- Adam step on  d softmax(w) / d w applied to  log D_t(before) - log D_t(after)

so all losses fall at the same relative rate. The change of a loss is that from a task's batch to its next one: no further pass.
``lr``, ``decay``: of Adam on w. ``floor``: the least loss that a task can have.
"""

from typing import Any

from torch import Tensor

from anabranch.balance._common import State, adam, gradients, keep, positive, recall
from anabranch.core.balance import Point
from anabranch.types import NonNegative, Positive


def famo(
    state: State, point: Point, *, lr: Positive = 0.025, decay: NonNegative = 1e-3, floor: float = 0.0
) -> tuple[Tensor, dict[str, Any]]:
    names, new = point.names, dict(state or {})
    excess = positive(point, floor) - floor + 1e-8
    w = recall(state, "w", names)
    if all(f"excess:{name}" in new for name in names):
        fallen = recall(state, "excess", names).log() - excess.log()
        z = w.softmax(0)
        w, moved = adam(state, names, z * (fallen - z @ fallen), lr, decay)
        new |= moved
    weights = w.softmax(0) / excess
    return weights / weights.sum() @ gradients(point), new | keep("excess", names, excess)
