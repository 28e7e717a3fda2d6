"""Hydra: a low-rank branch beside a layer and one behind it (Kim et al. 2023, arXiv:2309.06922).

    dy = scale * (x a b + y c e),   a [d_in, r], b [r, d_out], c [d_out, r], e [r, d_out];   b, e start at zero
    dW = scale * ((a b)^T + (c e)^T W),   db = scale * (c e)^T bias

The branch beside learns new features of the input, the one behind mixes those that the layer has. ``rank``: r of each.
``scale``: of both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import fits, linear
from anabranch.types import Count, Positive

rows = ("hydra-lora",)


@dataclass(frozen=True)
class Hydra(Delta):
    rank: Count = 4
    scale: Positive = 2.0
    at: ClassVar = ("attention.out", "mlp.out")
    lr: ClassVar[float] = 3e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        linear(site, "hydra")
        fits(self.rank, min(site.d_in, site.d_out), site)
        a, c = (torch.randn(d, self.rank, generator=rng) / d**0.5 for d in (site.d_in, site.d_out))
        return {"a": a, "b": torch.zeros(self.rank, site.d_out), "c": c, "e": torch.zeros(self.rank, site.d_out)}

    def apply(self, p: Params, at: At) -> Tensor:
        return (at.x @ p["a"] @ p["b"] + at.y @ p["c"] @ p["e"]) * self.scale

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        assert W is not None
        beside, behind = ((p[down] @ p[up]).mT * self.scale for down, up in (("a", "b"), ("c", "e")))
        return beside + behind @ W, None if b is None else behind @ b
