"""Iso-C: the sum of the tasks with all its singular values made equal (Marczak et al. 2025, arXiv:2502.04959).

    U S V^T = sum_t D_t;   D = scale * mean(S) U V^T

What is no matrix is averaged, times ``scale``. Directions that the sum does not have take no part. The decomposition is in
memory beside the rows.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anabranch.merge._parts import directions
from anabranch.types import Positive

promises = frozenset({"order", "scale"})


def iso_c(rows: Tensor, site: Any = None, whole: Mapping[str, Any] | None = None, *, scale: Positive = 1.3) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    if rows.ndim != 3:
        return scale * rows.mean(0)
    u, s, v = directions(rows.sum(0, keepdim=True), min(rows.shape[1:]))
    return scale * s.sum() / (s > 0).sum().clamp(min=1) * (u @ v.mT)[0]
