"""Several independent batches for one direction, as methods of double sampling need them, and weights of the tasks beside."""

from typing import Any

import torch
from torch import Tensor

from anabranch.balance._common import State, gradients, keep, recall
from anabranch.core.balance import Point


def sampled(state: State, point: Point, batches: int) -> tuple[Tensor | None, dict[str, Any]]:
    """The gradients [batches, t, n] of each task's last so many calls, which must be of other rows; None while one lacks some.

    A call without a direction moves no shared number, so the batches of tasks that always meet are all of one place. What has
    been given is forgotten.
    """
    kept, grads = dict(state or {}), gradients(point)
    held = [torch.cat([kept.pop(f"sample:{n}", grads[:0]), g[None]]) for n, g in zip(point.names, grads, strict=True)]
    if all(len(each) == batches for each in held):
        return torch.stack(held, 1), kept
    return None, kept | {f"sample:{n}": each[-(batches - 1) :].clone() for n, each in zip(point.names, held, strict=True)}


def weights(state: State, names: list[str]) -> Tensor:
    """[t] on the simplex: those kept, 1/t for tasks not met before."""
    return simplex(recall(state, "weight", names, 1.0) / len(names))


def keep_weights(names: list[str], w: Tensor) -> dict[str, Any]:
    """Times t, so that 1 is even among any number of tasks."""
    return keep("weight", names, w * len(names))


def simplex(y: Tensor) -> Tensor:
    """The nearest point of the simplex, [t]: max(y - c, 0) with the c that makes its sum 1."""
    y = y - y.max()  # which moves c alone; sums of large numbers would lose the 1
    high = y.sort(descending=True).values
    c = (high.cumsum(0) - 1) / torch.arange(1, len(y) + 1)
    return (y - c[(high > c).sum() - 1]).clamp(min=0)
