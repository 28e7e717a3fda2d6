"""TSV-M: task singular vectors, a few per task, made orthogonal to each other (Gargiulo et al. 2024, arXiv:2412.00081).

    D_t = U_t S_t V_t^T, of which the strongest min(d_out, d_in) / t directions stay, at least one
    D   = scale * polar([U_1 ... U_t]) diag(S_1 ... S_t) polar([V_1 ... V_t])^T,   polar(X) = X (X^T X)^-1/2

t counts the tasks. What is no matrix is averaged, times ``scale``. Directions that a task does not have take no part.
The factors of all tasks are in memory at once, beside the rows.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anabranch.merge._parts import directions, polar
from anabranch.types import Positive

promises = frozenset({"order", "scale"})
neutral = {"scale": 1.0}


def tsv(rows: Tensor, site: Any = None, whole: Mapping[str, Any] | None = None, *, scale: Positive = 1.0) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    if rows.ndim != 3:
        return scale * rows.mean(0)
    u, s, v = directions(rows, max(1, min(rows.shape[1:]) // len(rows)))
    left, right = (polar(x.transpose(0, 1).flatten(1)) for x in (u, v))  # [d_out, t k], [d_in, t k]
    return scale * (left * s.flatten()) @ right.mT
