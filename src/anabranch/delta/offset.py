"""Bias tuning, BitFit: one vector added to a layer's output (Ben Zaken et al. 2022, arXiv:2106.10199).

    dy = d,  d [d_out]

d starts at zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import ANYWHERE, sits


@dataclass(frozen=True)
class Offset(Delta):
    at: ClassVar = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out")
    lr: ClassVar[float] = 5e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "an offset", *ANYWHERE)
        return {"d": torch.zeros(site.d_out)}

    def apply(self, p: Params, at: At) -> Tensor:
        return p["d"].expand_as(at.y)

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return None, p["d"]
