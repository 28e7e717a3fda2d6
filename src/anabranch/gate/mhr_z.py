"""MHR-z: a new task learns only the routing over skills that other tasks have trained (Caccia et al. 2022,
arXiv:2211.03831).

    p[block h] = sum_k w_hk p_k[block h],  w_hk = sigmoid(z_hk) / sum_j sigmoid(z_hj),  z [heads, k] per task and site

As MHR, over a library: the skills stay as they are, and a task costs heads * k numbers a site.

``heads``: blocks with a routing of their own; 1 is Poly-z.
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
class MhrZ(Gate):
    heads: Count = 8
    on: ClassVar[Literal["outputs", "params"]] = "params"
    library: ClassVar[bool] = True

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        return {"z": start(self.heads, slots, rng=rng)}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return shares(own["z"], on)

    def blend(self, delta: Delta, own: Params, w: Tensor) -> Params:
        return blocks(delta, own, w)
