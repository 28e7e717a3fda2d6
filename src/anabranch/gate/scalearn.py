"""ScaLearn on the outputs of frozen deltas of any kind: a learned scale per source and site (Frohmann et al. 2024,
arXiv:2310.01217).

    dy = sum_k omega_k Delta_k(x),  omega [k] per target task and site, starts at 1/k

No softmax, no sum to 1: this is ScaLearn-Uniform. The level with a scale for every output number, and the two whose
scales are the same at all sites, are in ``merge.scalearn``, for deltas that are changes of weights.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site

rows = ("scalearn",)


@dataclass(frozen=True)
class Scalearn(Gate):
    library: ClassVar[bool] = True

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        return {"omega": torch.full((slots,), 1 / slots)}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return own["omega"]
