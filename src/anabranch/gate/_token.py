"""What gates that look at tokens share: the vectors that ask, and a softmax over the best."""

import torch
from torch import Tensor

from anabranch.core.delta import At
from anabranch.core.site import Site


def width(site: Site) -> int:
    """Numbers in an asking vector: what the site reads; at an embedding, which reads ids, what it says."""
    return site.d_out if site.kind == "embedding" else site.d_in


def asking(at: At) -> Tensor:
    """[l, width] in fp32: routing in half precision would choose other slots."""
    return (at.x if at.x.is_floating_point() else at.y).float()


def alike(at: At, v: Tensor) -> Tensor:
    """What each token asks of each v [k, width] -> x . v [l, k] in fp32.

    Of bf16 without gradients by two products in bf16, the second of what the first lost by rounding: together right to 2^-17 of
    x . v, which the rounding of x to bf16 itself moves 30 times as far.
    """
    if at.x.dtype != torch.bfloat16 or v.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return asking(at) @ v.float().mT
    near = at.x @ v.mT
    rest = torch.cat([at.x, near], -1) @ torch.cat([v, -torch.eye(len(v), dtype=v.dtype, device=v.device)], -1).mT
    return near.float() + rest.float()


def top_softmax(logits: Tensor, on: Tensor, top: int) -> Tensor:
    """[..., k]: a softmax over the ``top`` highest logits of the candidates that are ``on`` [k], zero elsewhere."""
    best, ids = highest(torch.where(on, logits, -torch.inf), top)
    return placed(logits, ids, torch.softmax(best, -1))


def highest(t: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """t [..., k] -> its ``top`` highest (all, where they are fewer) and their places [..., top], the first of equals first."""
    found: list[tuple[Tensor, Tensor]] = []
    for _ in range(min(top, t.shape[-1])):  # few: two maxima take a fifth of the time of topk, which sorts
        t = t.scatter(-1, found[-1][1], -torch.inf) if found else t
        found.append(t.max(-1, keepdim=True))
    values, places = zip(*found, strict=True)
    return torch.cat(values, -1), torch.cat(places, -1)


def placed(like: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Zeros like [..., k] but for ``values`` at ``places``, both [..., top]; of candidates that are off a place may repeat."""
    return torch.zeros_like(like).scatter_add(-1, places, values)
