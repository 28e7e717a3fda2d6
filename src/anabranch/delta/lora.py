"""LoRA: a low-rank change of a weight (Hu et al. 2021, arXiv:2106.09685).

    dW = (alpha / r) * (a b)^T,  a [d_in, r], b [r, d_out];  b starts at zero, so a fresh slot changes nothing

``rank``: r. ``alpha``: scale of the change, so that the learning rate can stay when the rank changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import fits, sits
from anabranch.types import Count, Positive


@dataclass(frozen=True)
class Lora(Delta):
    rank: Count = 8
    alpha: Positive = 16.0
    lr: ClassVar[float] = 5e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, type(self).__module__.rpartition(".")[2], "linear", "region", "whole")
        fits(self.rank, min(site.d_in, site.d_out), site)
        a = torch.randn(site.d_in, self.rank, generator=rng) / site.d_in**0.5
        return {"a": a, "b": torch.zeros(self.rank, site.d_out)}

    def apply(self, p: Params, at: At) -> Tensor:
        return at.x @ p["a"] @ (p["b"] * (self.alpha / self.rank))

    def factors(self, p: Params) -> tuple[Tensor, Tensor] | None:
        return p["a"], p["b"] * (self.alpha / self.rank)

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return (p["a"] @ p["b"]).mT * (self.alpha / self.rank), None
