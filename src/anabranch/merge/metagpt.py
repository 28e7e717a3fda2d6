"""MetaGPT: task arithmetic whose coefficients follow from the lengths of the task vectors (Zhou et al. 2024, arXiv:2406.11385).

    d = sum_t lambda_t d_t,  lambda_t = |d_t|^2 / sum_k |d_k|^2

The coefficients that minimise the mean first-order loss gap to the experts when task vectors are orthogonal; no data.
``by``: "model" measures |d_t| over the whole model (``whole["norm"]`` [t]), "site" in each tensor. Where no task changes
anything, nothing is merged.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

rows = ("metagpt-merge",)
promises = frozenset({"identity", "order", "scale", "shape"})


def metagpt(
    rows: Tensor, site: Any = None, whole: Mapping[str, Any] | None = None, *, by: Literal["model", "site"] = "model"
) -> Tensor:
    """rows [t, *shape] -> [*shape]. Without ``whole`` each tensor is measured by itself."""
    tiny = torch.finfo(rows.dtype).tiny
    if whole is not None and by == "model":
        norm = whole["norm"].to(rows)
    else:
        norm = (rows / rows.abs().max().clamp(min=tiny)).flatten(1).norm(dim=1)  # squares of 1e-30 or 1e30 do not fit
    share = (norm / norm.max().clamp(min=tiny)) ** 2
    return torch.tensordot(share / share.sum().clamp(min=tiny), rows, 1)
