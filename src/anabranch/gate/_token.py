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
    best, ids = highest(torch.where(on, logits, -torch.inf), top)
    return torch.zeros_like(logits).scatter_add(-1, ids, torch.softmax(best, -1))


def highest(t: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The ``top`` highest of the last dimension (all, where they are fewer) and their places, the first of equals first."""
    found = []
    for _ in range(min(top, t.shape[-1])):  # few: two maxima take a fifth of the time of topk, which sorts
        value, place = t.max(-1, keepdim=True)
        t = t.scatter(-1, place, -torch.inf)
        found.append((value, place))
    values, places = zip(*found, strict=True)
    return torch.cat(values, -1), torch.cat(places, -1)
