"""One learned softmax per task over the candidate slots, at each site (as in AdapterFusion's static ablation and
Polytropon's router; Ponti et al. 2022, arXiv:2202.13914).

    w = softmax(c / temperature),  c [k] per task and site, starts at zero

``temperature``: below 1 sharpens the choice.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.types import Positive


@dataclass(frozen=True)
class Learned(Gate):
    temperature: Positive = 1.0

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        return {"c": torch.zeros(slots)}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return torch.softmax(torch.where(on, own["c"] / self.temperature, -torch.inf), -1)
