"""Affiner of DiffScaler: scale, shift and a low-rank branch with a ReLU (Nair et al. 2024, arXiv:2404.09976).

    y = (1 + a) W x + b0 + b + scale * relu(x down) up,  a, b [d_out], down [d_in, r], up [r, d_out], b0 f's own bias

a, b and up start at zero. Scale and shift reuse f's directions; the branch adds directions that f lacks.
``rank``: r. ``scale``: of the branch. ``channels``: a number of its own for every output in a, or one for all.
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

rows = ("diffscaler",)


@dataclass(frozen=True)
class Affiner(Delta):
    rank: Count = 8
    scale: Positive = 1.0
    channels: bool = True
    at: ClassVar = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out")
    lr: ClassVar[float] = 3e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        linear(site, "an affiner")
        fits(self.rank, min(site.d_in, site.d_out), site)
        down = torch.randn(site.d_in, self.rank, generator=rng) / site.d_in**0.5
        a = torch.zeros(site.d_out if self.channels else 1)
        return {"a": a, "b": torch.zeros(site.d_out), "down": down, "up": torch.zeros(self.rank, site.d_out)}

    def apply(self, p: Params, at: At) -> Tensor:
        Wx = at.y if at.b is None else at.y - at.b
        return p["a"] * Wx + p["b"] + self.scale * (torch.relu(at.x @ p["down"]) @ p["up"])
