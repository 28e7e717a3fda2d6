"""Align-LoRA: one LoRA for all tasks, whose inner features are pulled together (Liu et al. 2025, arXiv:2508.05078).

    penalty = align * mean over pairs (s, t) of D(z_s, z_t),  z = x a [b, l, r] of the rows of one task

``distance``: mmd, the maximum mean discrepancy under a sum of Gaussian kernels exp(-|z - z'|^2 / (2 v)), token i against
token i, mean over i; or kl, the symmetric Kullback-Leibler divergence of diagonal Gaussians fitted to all tokens of a task.
``align``: weight of the penalty at a site; the sites add up. ``rank`` is higher than that of one task's LoRA, as all tasks
share the slot. A batch of one task has no penalty.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anabranch.core.delta import At, Params
from anabranch.delta.lora import Lora
from anabranch.types import Count, NonNegative, Positive

rows = ("align-lora",)
VARIANCES = tuple(10.0**i for i in range(-3, 4))  # v of the kernels: wide enough for features of any scale


@dataclass(frozen=True)
class AlignLora(Lora):
    rank: Count = 16
    alpha: Positive = 32.0
    distance: Literal["mmd", "kl"] = "mmd"
    align: NonNegative = 0.001

    def penalty(self, p: Params, at: At, who: Tensor) -> Tensor:
        z = (at.x @ p["a"]).float()
        rows = (who == who.unique()[:, None])[..., None] & at.mask  # [t, b, l]
        return self.align * (mmd if self.distance == "mmd" else kl)(z, rows)


def mmd(z: Tensor, rows: Tensor) -> Tensor:
    """z [b, l, r], rows [t, b, l] bool -> mean over pairs of tasks and the places where both have tokens."""
    flat = z.transpose(0, 1)  # [l, b, r]
    norm = flat.square().sum(-1)
    far = (norm[:, :, None] + norm[:, None] - 2 * flat @ flat.mT).clamp(min=0)  # [l, b, b]
    kernel = sum((torch.exp(far * (-0.5 / v)) for v in VARIANCES), torch.zeros_like(far))
    share = rows / rows.sum(1, keepdim=True).clamp(min=1)
    inner = torch.einsum("sbl,lbc,tcl->stl", share, kernel, share)
    own = inner.diagonal().mT  # [t, l]
    s, t = _pairs(len(rows), z)
    both = rows.any(1)[s] & rows.any(1)[t]
    apart = torch.where(both, own[s] + own[t] - 2 * inner[s, t], 0.0).sum(1) / both.sum(1).clamp(min=1)
    return apart.sum() / max(1, len(s))


def kl(z: Tensor, rows: Tensor) -> Tensor:
    """z [b, l, r], rows [t, b, l] bool -> mean over pairs of tasks that have two tokens or more."""
    found = [z[on] for on in rows if on.sum() > 1]  # [tokens, r] each
    if len(found) < 2:
        return z.new_zeros(())
    mean = torch.stack([g.mean(0) for g in found])
    var = torch.stack([g.var(0, correction=0) for g in found]) + 1e-6
    s, t = _pairs(len(found), z)
    ratio = var[s] / var[t]
    apart = ratio + 1 / ratio - 2 + (mean[s] - mean[t]).square() * (1 / var[s] + 1 / var[t])
    return apart.sum(1).mean() / 4


def _pairs(n: int, z: Tensor) -> Tensor:
    """All pairs of n tasks [2, n (n - 1) / 2]."""
    return torch.triu_indices(n, n, 1, device=z.device)
