"""Model Stock: the mean task vector, shortened as far as the tasks point apart (Jang et al. 2024, arXiv:2403.19522).

    c = mean over pairs of tasks of cos(d_s, d_t), at least 0;  d = t c / (1 + (t - 1) c) * (1/t) sum_t d_t

t counts the tasks; c is of one tensor. Tasks that agree give their mean, tasks at right angles give f itself.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anabranch.errors import InputError

promises = frozenset({"identity", "order", "scale", "shape"})
takes = (2, None)


def model_stock(rows: Tensor, site: Any = None, whole: Mapping[str, Any] | None = None) -> Tensor:
    """rows [t, *shape] -> [*shape]; InputError for one task."""
    t = len(rows)
    if t < 2:
        raise InputError(f"model_stock compares at least 2 tasks, got {t}; for one task take mean")
    flat = rows.flatten(1)
    norm = flat.norm(dim=1).clamp(min=1e-30)
    cos = (flat @ flat.mT / norm / norm[:, None]).fill_diagonal_(0).sum() / (t * (t - 1))
    cos = cos.clamp(0, 1)
    return rows.mean(0).mul_(t * cos / (1 + (t - 1) * cos))
