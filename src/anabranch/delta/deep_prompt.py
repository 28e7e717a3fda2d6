"""Deep prompts: soft tokens of their own in front of every block (P-tuning v2, Liu et al. 2022, arXiv:2110.07602;
visual prompts, Jia et al. 2022, arXiv:2203.12119).

    block_i([p_i; h_i]),  p_i [tokens, d];  what block i made of its soft tokens is replaced by p_{i+1}

``tokens``: how many per block. The first block of the sites inserts them, so lower blocks never see any.
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
class DeepPrompt(Delta):
    tokens: Count = 8
    door: ClassVar = "sequence"
    at: ClassVar = "block"
    neutral: ClassVar[bool] = False
    lr: ClassVar[float] = 1e-2

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "deep_prompt", "block", use="block")
        return {"tokens": 0.3 * torch.randn(self.tokens, site.d_out, generator=rng)}

    def apply(self, p: Params, at: At) -> Tensor:
        return p["tokens"]
