"""MHR, multi-head routing: Poly in which each block of the factors is composed apart (Caccia et al. 2022, arXiv:2211.03831).

    p[block h] = sum_k w_hk p_k[block h],  w_hk = sigmoid(z_hk) / sum_j sigmoid(z_hj),  z [heads, k] per task and site

Heads cut each tensor along its longest axis, which is the rows of LoRA's a [d_in, r] and the columns of its b [r, d_out],
into parts that differ by at most one. ``heads`` = 1 is Poly. A later task (``anabranch add``) learns z alone over the
skills as they are (MHR-z; over other tasks' own slots: mhr_z), or with ``gate: mhr_mu`` starts at their average.

``slots``: skills in the inventory, which all tasks train together. ``heads``: blocks with a routing of their own.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.gate._skill import blocks, shares, start
from anabranch.types import Count

rows = ("mhr",)


@dataclass(frozen=True)
class Mhr(Gate):
    slots: Count = 8
    heads: Count = 8
    on: ClassVar[Literal["outputs", "params"]] = "params"

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        return {"z": start(self.heads, slots, rng=rng)}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return shares(own["z"], on)

    def blend(self, delta: Delta, own: Params, w: Tensor) -> Params:
        return blocks(delta, own, w)
