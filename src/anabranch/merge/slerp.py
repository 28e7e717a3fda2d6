"""Spherical interpolation of two task vectors (Shoemake 1985, Proceedings of SIGGRAPH; for models White 2016, arXiv:1609.04468).

    d = sin((1 - w) a) / sin(a) d_1 + sin(w a) / sin(a) d_2,   cos(a) = <d_1, d_2> / (|d_1| |d_2|)

``weight`` w: 0 is the first task, 1 the second. Vectors that are parallel or zero are interpolated on the straight line.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from anabranch.errors import InputError

promises = frozenset({"identity", "scale", "shape"})
takes = (2, 2)


def slerp(
    rows: Tensor,
    site: Any = None,
    whole: Mapping[str, Any] | None = None,
    *,
    weight: Annotated[float, Interval(ge=0, le=1)] = 0.5,
) -> Tensor:
    """rows [2, *shape] -> [*shape]; InputError for other numbers of tasks."""
    if len(rows) != 2:
        raise InputError(f"slerp lies between exactly 2 tasks, got {len(rows)}; for more take mean or model_stock")
    first, second = rows.flatten(1)
    size = first.norm() * second.norm()
    cos = torch.dot(first, second) / size.clamp(min=1e-30)
    parts = torch.tensor([1 - weight, weight], device=rows.device)
    if size > 0 and abs(cos) < 0.9995:
        angle = cos.acos()
        parts = (parts * angle).sin() / angle.sin()
    return torch.tensordot(parts, rows, 1)
