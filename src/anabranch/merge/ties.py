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

from torch import Tensor

from anabranch.merge._parts import agree, keep, ranked, sweep, trim
from anabranch.types import Positive, Share

promises = frozenset({"order", "scale", "shape"})
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
    edge = edges(rows, whole, density)
    return sweep(rows, agree, lambda d, out: trim(d, edge, out)).mul_(scale)


def edges(rows: Tensor, whole: Mapping[str, Any] | None, density: float = 0.2) -> Tensor:
    """[t, 1]: the magnitudes from which numbers are kept."""
    if whole is not None and "threshold" in whole:
        found: Tensor = whole["threshold"].to(rows)[:, None]
        return found
    return ranked(rows, keep(density, rows[0].numel()))[0]
