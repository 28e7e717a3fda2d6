"""What gates over an inventory of skills share (Polytropon, MHR): the start of the scores, their
shares, and parameters mixed by blocks."""

import torch
from torch import Generator, Tensor

from anabranch.core.delta import Delta, Params


def start(*shape: int, rng: Generator) -> Tensor:
    """Scores near zero: all skills about equal, no two alike."""
    return 2e-3 * torch.rand(*shape, generator=rng) - 1e-3


def shares(z: Tensor, on: Tensor) -> Tensor:
    """[..., k]: sigmoids of the scores z, divided by their sum over the candidates that are ``on`` [k]."""
    s = torch.where(on, torch.sigmoid(z.float()), 0.0)
    return s / s.sum(-1, keepdim=True).clamp(min=1e-12)


def longest(t: Tensor) -> int:
    """The axis of own tensors [k, *shape] that heads divide: the longest, counted from the end; of equals the last."""
    return max(range(1 - t.ndim, 0), key=lambda axis: (t.shape[axis], axis))


def blocks(delta: Delta, own: Params, w: Tensor) -> Params:
    """Own tensors [k, ...] as one slot's, head h of them mixed by w[h], of w [heads, k]; a single number by the mean head."""
    axes = {n: longest(t) for n, t in own.items() if t.ndim > 1}
    cut = {n: own[n].tensor_split(len(w), axis) for n, axis in axes.items()}
    heads = [delta.blend({n: parts[h] for n, parts in cut.items()}, w[h]) for h in range(len(w))]
    whole = delta.blend({n: t for n, t in own.items() if t.ndim == 1}, w.mean(0))
    return whole | {n: torch.cat([head[n] for head in heads], axis) for n, axis in axes.items()}
