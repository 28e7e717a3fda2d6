"""(IA)^3: rescales keys, values and the inner activations of the MLP (Liu et al. 2022, arXiv:2205.05638).

    dy = y * s            at keys and values, s [d_out]
    dy = (x * s) W^T      at the MLP's output layer, s [d_in]

s starts at zero: the paper's l is 1 + s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import sits


@dataclass(frozen=True)
class Ia3(Delta):
    at: ClassVar = ("attention.key", "attention.value", "mlp.out")
    lr: ClassVar[float] = 1e-2

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        inner = site.role == "mlp.out"
        sits(site, "ia3", "linear", *(() if inner else ("region", "whole")))
        return {"inner": torch.zeros(site.d_in)} if inner else {"outer": torch.zeros(site.d_out)}

    def apply(self, p: Params, at: At) -> Tensor:
        if "outer" in p:
            return at.y * p["outer"]
        assert at.W is not None
        return (at.x * p["inner"]) @ at.W.mT

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if W is None:
            return super().weight(p, W, b)
        if "inner" in p:
            return W * p["inner"], None
        return W * p["outer"][:, None], None if b is None else b * p["outer"]
