"""DC-Merge: tasks are merged entry by entry in a space that their directions span together (Zhang et al. 2026,
arXiv:2603.06242).

    d_t ~ U_t S_t V_t^T, the strongest k directions of each, S_t smoothed so that weak directions count:
          "average": all equal to mean(S_t);  "linear": falling in a line by the factor min(rho, S_1 / S_k), sum kept;  "none"
    U = polar([U_1 ... U_t]), V = polar([V_1 ... V_t])           polar(X) = X (X^T X)^-1/2: orthonormal, nearest to X
    M_t = U^T d_t V,  its largest ``density`` stay;   M = the mean of those whose sign has the larger sum (TIES)
    d = scale * U blockdiag(M) V^T,                              blocks of k x k, one a task

``rank``: k; 0 is min(d_out, d_in) / t, and LoRA takes its own rank. The paper smooths deltas of LoRA and leaves those of
full fine-tuning as they are ("none"). What is no matrix is averaged, times ``scale``.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from anabranch.merge._parts import directions, polar
from anabranch.merge.ties import ties
from anabranch.types import Positive, Share

rows = ("dc-merge",)
promises = frozenset({"scale"})
neutral = {"smooth": "none", "density": 1.0, "scale": 1.0}


def dc(
    rows: Tensor,
    site: Any = None,
    whole: Mapping[str, Any] | None = None,
    *,
    rank: Annotated[int, Ge(0)] = 0,
    smooth: Literal["average", "linear", "none"] = "average",
    rho: Annotated[float, Ge(1)] = 5.0,
    density: Share = 1e-3,
    scale: Positive = 1.0,
) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    if rows.ndim != 3:
        return scale * rows.mean(0)
    t, most = len(rows), max(1, min(rows.shape[1:]) // len(rows))
    u, s, v = directions(rows, min(rank or most, most))
    s = smoothed(s, smooth, rho)
    U, V = (polar(x.transpose(0, 1).flatten(1)) for x in (u, v))  # [d_out, t k], [d_in, t k]
    M = ties(U.mT @ (u * s[:, None] @ v.mT) @ V, density=density)  # [t k, t k]
    blocks = torch.block_diag(*[torch.ones_like(M[: s.shape[1], : s.shape[1]])] * t)
    return scale * U @ (M * blocks) @ V.mT


def smoothed(s: Tensor, how: str, rho: float) -> Tensor:
    """s [t, k], falling, 0 where a task has no such direction -> [t, k] with the same sums and zeros."""
    if how == "none":
        return s
    real = s > 0
    count = real.sum(1, keepdim=True)
    place = (torch.arange(s.shape[1], device=s.device) / (count - 1).clamp(min=1)).clamp(max=1)
    last = s.gather(1, (count - 1).clamp(min=0))
    ratio = torch.where(last > 0, s[:, :1] / last, 1.0).clamp(max=rho if how == "linear" else 1.0)
    line = (ratio + (1 - ratio) * place) * real  # from ratio down to 1
    return s.sum(1, keepdim=True) * line / line.sum(1, keepdim=True).clamp(min=1)
