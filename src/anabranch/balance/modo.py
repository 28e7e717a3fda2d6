"""MoDo, multi-objective descent with double sampling (Chen et al. 2023, arXiv:2305.20057).

    w <- P(w - gamma (J_1 J_2^T w + rho w)),   g = w^T (J_1 + J_2) / 2,   J_i [t, n] the gradients of independent batches

P: the nearest point of the simplex. Products of two independent gradients estimate those of the means without the bias that a
gradient times itself has. A batch is that of one call: theta stays where it is in the calls between, heads do not.
``batches``: 2; or 3, where g = w^T J_3. ``gamma``: rate of the weights, which are kept for each task. ``rho``: pull to even ones.
"""

from typing import Any, Literal

from torch import Tensor

from anabranch.balance._common import State
from anabranch.balance._samples import keep_weights, sampled, simplex, weights
from anabranch.core.balance import Point
from anabranch.types import NonNegative, Positive


def modo(
    state: State, point: Point, *, gamma: Positive = 0.1, rho: NonNegative = 0.1, batches: Literal[2, 3] = 2
) -> tuple[Tensor | None, dict[str, Any]]:
    grads, kept = sampled(state, point, batches)
    if grads is None:
        return None, kept
    w = weights(kept, point.names)
    w = simplex(w - gamma * (grads[0] @ (grads[1].mT @ w) + rho * w))
    return w @ (grads[:2].mean(0) if batches == 2 else grads[2]), kept | keep_weights(point.names, w)
