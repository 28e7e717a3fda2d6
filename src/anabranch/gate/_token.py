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


def top_softmax(logits: Tensor, on: Tensor, top: int) -> Tensor:
    """[..., k]: a softmax over the ``top`` highest logits of the candidates that are ``on`` [k], zero elsewhere."""
    best, ids = torch.where(on, logits, -torch.inf).topk(min(top, logits.shape[-1]), dim=-1)
    return torch.zeros_like(logits).scatter(-1, ids, torch.softmax(best, -1))
