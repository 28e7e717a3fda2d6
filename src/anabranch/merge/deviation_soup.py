"""Deviation-weighted soup of CoDiEmb (Zhang et al. 2025, arXiv:2508.11442).

    w_t = |d_t| / sum_s |d_s|  in each tensor apart;   d = sum_t w_t d_t

A checkpoint counts more where it has moved further from the pretrained weights. Nothing to set.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

rows = ("codiemb",)
promises = frozenset({"identity", "order", "scale", "shape"})


def deviation_soup(rows: Tensor, site: Any = None, whole: Mapping[str, Any] | None = None) -> Tensor:
    """rows [t, *shape] -> [*shape]; 0 where no checkpoint has moved."""
    moved = rows.reshape(len(rows), -1).norm(dim=1)
    share = moved / moved.sum().clamp(min=1e-38)
    return torch.einsum("t,t...->...", share, rows)
