"""SDMGrad, stochastic direction-oriented multi-objective gradient descent (Xiao et al. 2023, arXiv:2305.18409).

    A = J_1 J_2^T / (mean_t sqrt(max(A_tt, 0)))^2;   n_iter times:  v <- momentum v + A (w + lambda / t),  w <- P(w - lr v)
    g = ((w + lambda / t) / (1 + lambda))^T J_3,   J_i [t, n] the gradients of three independent batches

P: the nearest point of the simplex; w goes on from the step before, v starts anew. A batch is that of one call: theta stays
where it is in the calls between, heads do not. ``lambda_``: pull to the mean gradient; 0 is MGDA's problem. ``lr``,
``momentum``, ``n_iter``: of the descent on w.
"""

from typing import Any

import torch
from torch import Tensor

from anabranch.balance._common import State
from anabranch.balance._samples import keep_weights, sampled, simplex, weights
from anabranch.core.balance import Point
from anabranch.types import Count, Fraction, NonNegative, Positive


def sdmgrad(
    state: State, point: Point, *, lambda_: NonNegative = 0.3, lr: Positive = 10.0, momentum: Fraction = 0.5, n_iter: Count = 20
) -> tuple[Tensor | None, dict[str, Any]]:
    grads, kept = sampled(state, point, 3)
    if grads is None:
        return None, kept
    a = grads[0] @ grads[1].mT
    a = a / (a.diagonal().clamp(min=0).sqrt().mean().square() + 1e-8)
    w, even = weights(kept, point.names), lambda_ / len(a)
    v = torch.zeros_like(w)
    for _ in range(n_iter):
        v = momentum * v + a @ (w + even)
        w = simplex(w - lr * v)
    return (w + even) / (1 + lambda_) @ grads[2], kept | keep_weights(point.names, w)
