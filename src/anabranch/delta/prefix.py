"""Prefix tuning: learned keys and values before those of the text (Li and Liang 2021, arXiv:2101.00190).

    attention(q, [P_k; K], [P_v; V]) = (1 - l) attention(q, K, V) + l softmax(q P_k^T) P_v,   P_k, P_v [tokens, d_out]
    l = sum exp(q P_k^T) / (sum exp(q P_k^T) + sum exp(q K^T)), per query and head: the mass on the prefix

The second form is the gated parallel adapter of He et al. 2022 (arXiv:2110.04366), see :mod:`anabranch.delta.unified`.
``tokens``: how many per layer; they take no positions. The vectors themselves are learned, without the MLP that makes
them in the paper's training, as in P-tuning v2 (Liu et al. 2022, arXiv:2110.07602).
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

rows = ("unified-peft-mam",)


@dataclass(frozen=True)
class Prefix(Delta):
    tokens: Count = 30
    door: ClassVar = "attention"
    at: ClassVar = "attention"
    neutral: ClassVar[bool] = False  # a prefix takes mass from the text whatever it holds
    lr: ClassVar[float] = 1e-2

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "a prefix", "attention", use="attention")
        return {n: 0.3 * torch.randn(self.tokens, site.d_out, generator=rng) for n in ("keys", "values")}

    def apply(self, p: Params, at: At) -> Tensor:
        return torch.stack([p["keys"], p["values"]])
