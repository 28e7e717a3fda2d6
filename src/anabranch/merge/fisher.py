"""Fisher merging: numbers weigh as much as their task's loss bends with them (Matena and Raffel 2022, arXiv:2111.09832).

    d = sum_t F_t d_t / sum_t F_t      entry by entry, F_t >= 0: mean squared gradient of task t's log-likelihood

``whole["fisher"][site key]`` [t, *shape]. Where no task has curvature, and for tensors without F (biases), it is the mean.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anabranch.merge._parts import statistic

promises = frozenset({"identity", "order", "scale"})
needs = frozenset({"fisher"})


def fisher(rows: Tensor, site: Any = None, whole: Mapping[str, Any] | None = None) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    f = statistic(whole, "fisher", site)
    if f is None or f.shape != rows.shape:
        return rows.mean(0)
    share = f / f.sum(0).clamp(min=1e-30)
    return torch.where(f.sum(0) > 1e-30, (share * rows).sum(0), rows.mean(0))
