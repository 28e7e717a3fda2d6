"""IAPT: before every block, a few soft tokens made from what the row says there (Zhu et al. 2024, arXiv:2405.18203).

    h = x D [l, size],   pooled = softmax over real tokens of (h S)^T [tokens, l] @ h,   prompt = R(pooled) U [tokens, d]
    R(z) = (p_0 + p_1 z + ... + p_5 z^5) / (1 + |q_1 z + ... + q_4 z^4|)

D [d, size] and U [size, d] are one copy for all blocks and tasks; S [size, tokens] and the activation R are each slot's
own in each block. R starts as GELU (within 0.004 on [-6, 6], least squares). What a block made of its soft tokens is
replaced before the next. A row's prompt reads all of its real tokens, a generated answer's too: for classification,
tagging and the like, not for generate.

``tokens``: how many per block. ``size``: width of the bottleneck. ``activation``: rational is learned, the others not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import sits
from anabranch.errors import InputError
from anabranch.types import Count

rows = ("iapt",)
P = (-0.00375, 0.5, 0.42037, 0.126259, 0.0159853, 0.000712954)
Q = (0.0, 0.252534, 0.0, 0.00142619)


def rational(z: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """(p_0 + ... + p_5 z^5) / (1 + |q_1 z + ... + q_4 z^4|), entry by entry: it has no pole."""
    above, below = torch.zeros_like(z), torch.zeros_like(z)
    for c in p.flip(0):
        above = above * z + c
    for c in q.flip(0):
        below = (below + c) * z
    return above / (1 + below.abs())


@dataclass(frozen=True)
class Iapt(Delta):
    tokens: Count = 4
    size: Count = 64
    activation: Literal["rational", "relu", "gelu", "tanh"] = "rational"
    door: ClassVar = "sequence"
    at: ClassVar = "block"
    neutral: ClassVar[bool] = False
    lr: ClassVar[float] = 5e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "iapt", "block", use="block")
        learned = {"p": torch.tensor(P), "q": torch.tensor(Q)} if self.activation == "rational" else {}
        return {"pool": torch.randn(self.size, self.tokens, generator=rng) / self.size**0.5} | learned

    def shared(self, sites: Sequence[Site], rng: Generator) -> Params:
        widths = sorted({s.d_out for s in sites})
        if len(widths) > 1:
            raise InputError(f"iapt shares its projections between blocks of one width, got widths {widths}: narrow its at")
        down, up = torch.randn(2, widths[0], self.size, generator=rng)
        return {"down": down / widths[0] ** 0.5, "up": up.mT.contiguous() / self.size**0.5}

    def apply(self, p: Params, at: At) -> Tensor:
        h = at.x @ p["down"]
        scores = torch.where(at.mask[:, None], h @ p["pool"], torch.finfo(h.dtype).min)  # [l, tokens]
        pooled = scores.softmax(0).mT @ h
        if "p" in p:
            return rational(pooled, p["p"], p["q"]) @ p["up"]
        fixed = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}[self.activation]
        return fixed(pooled) @ p["up"]
