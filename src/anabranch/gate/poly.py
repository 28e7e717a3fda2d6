"""Poly: each task composes its delta from an inventory of skills (Polytropon, Ponti et al. 2022, arXiv:2202.13914, in the
form of Caccia et al. 2022, arXiv:2211.03831, without the Gumbel noise; MHR with one head).

    p = sum_k w_k p_k,  w_k = sigmoid(z_k) / sum_j sigmoid(z_j),  z [k] per task and site

Parameters are mixed, not outputs: with LoRA the change is (sum_k w_k a_k)(sum_k w_k b_k). z starts near zero.

``slots``: skills in the inventory, which all tasks train together.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Generator, Tensor

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.gate._skill import shares, start
from anabranch.types import Count

rows = ("mhr",)


@dataclass(frozen=True)
class Poly(Gate):
    slots: Count = 8
    on: ClassVar[Literal["outputs", "params"]] = "params"

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        return {"z": start(slots, rng=rng)}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return shares(own["z"], on)
