"""SSF: scales and shifts a layer's output (Lian et al. 2022, arXiv:2210.08823).

    dy = y * s + d,  s, d [d_out];  both start at zero: the paper's gamma is 1 + s

It sits behind every linear layer and every norm.
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
class Ssf(Delta):
    at: ClassVar = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out", "norm")
    lr: ClassVar[float] = 5e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "ssf", "linear", "norm", "region", "whole")
        return {"s": torch.zeros(site.d_out), "d": torch.zeros(site.d_out)}

    def apply(self, p: Params, at: At) -> Tensor:
        return at.y * p["s"] + p["d"]

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if W is None:
            return super().weight(p, W, b)
        s = p["s"]
        return W * (s if W.ndim == 1 else s[:, None]), p["d"] if b is None else b * s + p["d"]
