"""TIES: trim, elect a sign, merge what agrees (Yadav et al. 2023, arXiv:2306.01708).

    t_i = d_i where |d_i| is among the largest ``density`` of its task, else 0
    s   = sign(sum_t t)                       the sign with the larger total
    d   = scale * mean of the t_i whose sign is s   (0 where none is)

``density``: share of each task vector that is kept. ``scale``: of the result.
``whole["threshold"]`` [t], if given, trims by one threshold per task over the whole model, as in the paper's code;
without it each tensor keeps its own share, as merges of big checkpoints do.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anabranch.types import Positive, Share

promises = frozenset({"order", "scale"})
neutral = {"density": 1.0, "scale": 1.0}


def ties(
    rows: Tensor,
    site: Any = None,
    whole: Mapping[str, Any] | None = None,
    *,
    density: Share = 0.2,
    scale: Positive = 1.0,
) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    kept = trim(rows.flatten(1), density, whole)
    total = kept.sum(0)
    agree = torch.where(kept * total.sign() > 0, kept, 0)
    return (scale * agree.sum(0) / (agree != 0).sum(0).clamp(min=1)).view(rows.shape[1:])


def trim(flat: Tensor, density: float, whole: Mapping[str, Any] | None = None) -> Tensor:
    """[t, n] -> [t, n] with the smallest numbers of each row set to 0; of equal numbers at the edge all stay."""
    n, size = flat.shape[1], flat.abs()
    if whole is not None and "threshold" in whole:
        edge = whole["threshold"].to(flat)[:, None]
    else:
        edge = size.kthvalue(n - max(1, round(density * n)) + 1, dim=1, keepdim=True).values
    return torch.where(size >= edge, flat, 0)
