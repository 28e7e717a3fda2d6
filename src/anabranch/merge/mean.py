"""The mean of task vectors, weight averaging (Wortsman et al. 2022, Model soups, arXiv:2203.05482).

    d = (1/t) sum_t d_t

t counts the task vectors.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

promises = frozenset({"entries", "identity", "order", "scale", "shape"})


def mean(rows: Tensor, site: Any = None, whole: Mapping[str, Any] | None = None) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    return rows.mean(0)
