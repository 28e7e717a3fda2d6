"""DOGE: one correction of all task vectors that brings the merge near every expert, outside what the tasks share (Wei et al.
2025, Modeling multi-task model merging as adaptive projective gradient descent, arXiv:2501.01230).

    lambda_t = eta / |d_t|;   S = top 1/subspace left singular vectors of [U_1 ... U_t], U_t the top 1/t of each task
    min over e of sum_j sum_rows ( d_j . (d_j - sum_t lambda_t (d_t + e)) )^2,  Adam on the gradient g - S S^T g
    d = sum_t lambda_t m_t (d_t + e),   m_t: the largest ``density`` of d_t

The objective is the first-order gap of the losses, as d_j stands in for the gradients of task j; no data. ``eta``: length
of each task's share in each tensor. ``subspace``: a share of 1/subspace of all directions counts as shared; 0 projects
nothing out. ``steps``, ``lr``: of Adam; lr is in units of the root mean square of the tensor's task vectors, so that one
suits tensors of any size. What is no matrix is averaged (the paper leaves it as f has it).
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from anabranch.core.score import kept
from anabranch.merge._parts import directions
from anabranch.types import Count, Positive, Share

rows = ("doge-merge",)


def doge(
    rows: Tensor,
    site: Any = None,
    whole: Mapping[str, Any] | None = None,
    *,
    eta: Positive = 0.07,
    subspace: Annotated[int, Ge(0)] = 6,
    density: Share = 0.3,
    steps: Count = 400,
    lr: Positive = 0.1,
) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    if rows.ndim != 3:
        return rows.mean(0)
    norm = rows.flatten(1).norm(dim=1)
    share = torch.where(norm > 0, eta / norm, 0.0)
    return torch.tensordot(share, adjusted(rows, share, subspace, density, steps, lr), 1)


def adjusted(rows: Tensor, share: Tensor, subspace: int, density: float, steps: int, lr: float) -> Tensor:
    """rows [t, o, i], share lambda [t] -> m_t (d_t + e) [t, o, i]: task vectors that any other merge may take up as well."""
    size = rows.square().mean().sqrt().clamp(min=torch.finfo(rows.dtype).tiny)
    d = rows / size
    moved = d + correction(d, share, shared(d, subspace), steps, lr)
    return torch.where(torch.stack([kept(row.abs(), density) for row in d]), moved * size, 0.0)


def shared(d: Tensor, subspace: int) -> Tensor:
    """d [t, o, i] -> an orthonormal basis [o, k] of what the tasks have in common; k = 0 where there is none."""
    most = min(d.shape[1:])
    if not subspace or not most // subspace:
        return d.new_zeros(d.shape[1], 0)
    u, _, _ = directions(d, max(1, most // len(d)))
    left, s, _ = torch.linalg.svd(u.transpose(0, 1).flatten(1), full_matrices=False)
    return left[:, : most // subspace] * (s[: most // subspace] > 1e-4 * s[:1])


def correction(d: Tensor, share: Tensor, S: Tensor, steps: int, lr: float) -> Tensor:
    """The gradient in closed form: of r_j = d_j . (d_j - sum_t lambda_t d_t) - d_j . e sum_t lambda_t, per row."""
    base, total = (d * (d - torch.tensordot(share, d, 1))).sum(2), share.sum()  # [t, o]
    e, room = torch.zeros_like(d[0]), torch.empty_like(d)
    adam = torch.optim.Adam([e], lr)
    for _ in range(steps):
        gap = base - total * torch.mul(d, e, out=room).sum(2)
        g = -2 * total * torch.mul(d, gap[..., None], out=room).sum(0)
        e.grad = g - S @ (S.mT @ g)
        adam.step()
    return e
