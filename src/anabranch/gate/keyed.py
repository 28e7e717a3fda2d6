"""Routing by key: each slot has a key, a row takes the slots whose keys its input resembles (as in retrieval of LoRA
experts, LoraRetriever, Zhao et al. 2024, arXiv:2402.09997, and prompt pools, Wang et al. 2022, arXiv:2112.08654).

    w = softmax over the top k of cos(mean_l x, key_k) / temperature

``top``: slots that a row keeps. ``temperature``: below 1 sharpens. A slot's key is the mean input of its task at the
site where that was collected, else a random unit vector; adding a slot changes no other key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.gate._token import top_softmax
from anabranch.types import Count, Positive


@dataclass(frozen=True)
class Keyed(Gate):
    top: Count = 2
    temperature: Positive = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"mean"})

    def key(self, site: Site, p: Params, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        width = site.d_out if site.kind == "embedding" else site.d_in  # the input of an embedding is ids: its output asks
        start = torch.randn(width, generator=rng) if seen is None else seen["mean"]
        return {"key": torch.nn.functional.normalize(start, dim=0)}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        real = at.mask[:, None]
        x = at.x if at.x.is_floating_point() else at.y
        query = torch.where(real, x, 0).sum(0) / real.sum().clamp(min=1)
        alike = torch.nn.functional.cosine_similarity(keys["key"], query[None], dim=-1) / self.temperature
        return top_softmax(alike, on, self.top)
