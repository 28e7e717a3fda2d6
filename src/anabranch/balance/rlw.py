"""Random loss weighting (Lin et al. 2022, arXiv:2111.10603).

    w = softmax(z),  z ~ N(0, 1) of each task, drawn anew at each step;  g = sum_t w_t g_t

``seed``: of the draws.
"""

from typing import Any

from torch import Tensor

from anabranch.balance._common import State, draw, gradients
from anabranch.core.balance import Point


def rlw(state: State, point: Point, *, seed: int = 0) -> tuple[Tensor, dict[str, Any]]:
    z, state = draw(state, seed, "rlw", len(point.names))
    return z.softmax(0) @ gradients(point), state
