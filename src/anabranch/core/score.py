"""Choosing what to keep under a budget: one ``score``, one ``pick``; masks, sparse deltas, heads and data share them."""

import torch
from torch import Tensor

from anabranch.errors import InputError


def budget(n: int, share: float) -> int:
    """How many of n things a share in (0, 1] is: at least one."""
    if not 0 < share <= 1:
        fix = f": for {share:g} per cent pass {share / 100:g}" if 1 < share <= 100 else ""
        raise InputError(f"a share is in (0, 1], got {share:g}{fix}")
    return max(1, min(n, round(n * share)))


def pick(score: Tensor, size: int) -> Tensor:
    """The ids [size] of the highest scores [n], ascending; ties go to the earlier id, whatever the order of sorting."""
    if not 0 < size <= len(score):
        raise InputError(f"a budget is between 1 and the {len(score)} items, got {size}")
    if torch.isnan(score).any():
        raise InputError("a score is NaN; scores must be numbers")
    return torch.sort(torch.sort(score, descending=True, stable=True).indices[:size]).values


def kept(score: Tensor, share: float) -> Tensor:
    """A bool mask of score's shape: True at the ``budget`` highest scores, exactly that many."""
    flat = score.reshape(-1)
    return torch.zeros_like(flat, dtype=torch.bool).index_fill(0, pick(flat, budget(len(flat), share)), True).view_as(score)
