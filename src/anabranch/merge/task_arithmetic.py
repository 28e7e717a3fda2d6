"""Task arithmetic: the scaled sum of task vectors (Ilharco et al. 2023, arXiv:2212.04089).

    d = scale * sum_t d_t

``scale``: the paper picks it on validation data; 0.3 to 0.4 suits eight tasks, 1 one task.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anabranch.types import Positive

rows = ("task-arithmetic",)
promises = frozenset({"entries", "order", "scale", "shape"})
neutral = {"scale": 1.0}


def task_arithmetic(rows: Tensor, site: Any = None, whole: Mapping[str, Any] | None = None, *, scale: Positive = 0.4) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    return scale * rows.sum(0)
