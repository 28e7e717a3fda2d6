"""Prompt tuning: soft tokens in front of the embedded text (Lester et al. 2021, arXiv:2104.08691).

    [p; E(x)],  p [tokens, d]

``tokens``: how many. They take the first positions; the text moves behind them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import sits
from anabranch.types import Count


@dataclass(frozen=True)
class Prompt(Delta):
    tokens: Count = 8
    door: ClassVar = "sequence"
    at: ClassVar = "embedding"
    neutral: ClassVar[bool] = False
    lr: ClassVar[float] = 1e-2

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "a prompt", "embedding", use="embedding")
        return {"tokens": 0.05 * torch.randn(self.tokens, site.d_out, generator=rng)}

    def apply(self, p: Params, at: At) -> Tensor:
        return p["tokens"]
