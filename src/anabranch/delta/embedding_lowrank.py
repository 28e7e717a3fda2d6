"""A low-rank update of the input embeddings by position, the second half of DePT (Shi and Lipani 2023, arXiv:2309.05173).

    E'(x)_i = E(x)_i + (A B)_i,  A [length, r], B [r, d];  B starts at zero, places behind ``length`` stay

DePT is a short prompt with this beside it, each with its own learning rate; l soft tokens become m and the rest goes here,
m d + (length + d) r = l d numbers in all:

    delta: [{prompt: {tokens: 40}, lr: 0.01}, {embedding_lowrank: {rank: 36, length: 256}, at: embeddings.word_embeddings}]

i counts the real tokens of a row from 0, so padding on either side moves nothing. ``length``: places that have an update.
``rank``: r. Name the word embeddings where f adds places or a norm behind them (BERT); the default is the whole embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import fits, sits
from anabranch.types import Count

rows = ("dept",)


@dataclass(frozen=True)
class EmbeddingLowrank(Delta):
    length: Count = 128
    rank: Count = 8
    at: ClassVar = "embedding"
    tokenwise: ClassVar[bool] = False
    lr: ClassVar[float] = 2e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "embedding_lowrank", "table", "embedding", "front", use="embedding")
        fits(self.rank, min(self.length, site.d_out), site)
        a = (2 * torch.rand(self.length, self.rank, generator=rng) - 1) / self.rank**0.5
        return {"a": a, "b": torch.zeros(self.rank, site.d_out)}

    def apply(self, p: Params, at: At) -> Tensor:
        place = at.mask.cumsum(0) - 1
        inside = at.mask & (place < self.length)
        return torch.where(inside[:, None], p["a"][place.clamp(0, self.length - 1)] @ p["b"], 0.0)
