"""Bottleneck adapter behind a sublayer (Houlsby et al. 2019, arXiv:1902.00751).

    dy = act(y D) U,  D [d_out, size], U [size, d_out];  U starts at zero

``size``: width of the bottleneck.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import ANYWHERE, sits
from anabranch.types import Count


@dataclass(frozen=True)
class Adapter(Delta):
    size: Count = 16
    at: ClassVar = ("attention.out", "mlp.out")

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "an adapter", *ANYWHERE)
        down = torch.randn(site.d_out, self.size, generator=rng) / site.d_out**0.5
        return {"down": down, "up": torch.zeros(self.size, site.d_out)}

    def apply(self, p: Params, at: At) -> Tensor:
        return torch.relu(at.y @ p["down"]) @ p["up"]
