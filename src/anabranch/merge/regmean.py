"""RegMean: the linear layer whose outputs are nearest to every task's own (Jin et al. 2023, arXiv:2212.09849).

    D = (sum_t D_t G_t) (sum_t G_t)^-1,   G_t [d_in, d_in] = mean of x x^T, off-diagonal entries times ``keep``

``whole["gram"][site key]`` [t, d_in, d_in]. Inputs that never occur are averaged, and so
is what is no matrix of a linear layer.
``keep``: what stays of the entries off the diagonal; below 1 the inverse is stable.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anabranch.merge._parts import statistic
from anabranch.types import Share

promises = frozenset({"identity", "order", "scale"})
needs = frozenset({"gram"})


def regmean(rows: Tensor, site: Any = None, whole: Mapping[str, Any] | None = None, *, keep: Share = 0.9) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    gram, mean = statistic(whole, "gram", site), rows.mean(0)
    if gram is None or rows.ndim != 3 or gram.shape[-1] != rows.shape[-1]:
        return mean
    gram = torch.lerp(torch.diag_embed(gram.diagonal(dim1=1, dim2=2)), gram.to(rows), keep)
    pull = torch.einsum("toi,tij->oj", rows - mean, gram)  # of what the mean leaves, so that the inverse works on little
    total = gram.sum(0).double()
    ridge = 1e-9 * total.diagonal().max().clamp(min=1e-30)  # for inputs that no task has seen
    total.diagonal().add_(ridge)
    return mean + torch.linalg.solve(total, pull.double(), left=False).to(rows)
