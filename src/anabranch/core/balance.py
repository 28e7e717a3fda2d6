"""Training many deltas together: where training stands (``Point``) and ``lift``."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anabranch.errors import WorkError


class Point(NamedTuple):
    """Pure, so that methods such as SAMO or flat-MTL may look elsewhere; r counts (task, term) pairs."""

    theta: Tensor  # [n] the numbers that are shared
    losses: Callable[[Tensor], Tensor]  # theta [n] -> [r]
    grads: Callable[[Tensor], Tensor]  # theta [n] -> [r, n]
    names: list[str]  # of the r losses


Balancer = Callable[[Any, Point], tuple[Tensor | None, Any]]  # (state, point) -> (direction [n] or None, state)


def lift(combine: Callable[..., Tensor]) -> Balancer:
    """Makes any aggregator [t, n] -> [n] a balancer; its state is a call count."""

    def balancer(state: Any, point: Point) -> tuple[Tensor | None, Any]:
        grads = point.grads(point.theta)
        if not torch.isfinite(grads).all():
            bad = [n for n, ok in zip(point.names, torch.isfinite(grads).all(1), strict=True) if not ok]
            raise WorkError(f"the gradient of {', '.join(bad)} is not finite")
        return combine(grads), (state or 0) + 1

    return balancer
