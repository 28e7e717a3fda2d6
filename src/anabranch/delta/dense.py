"""A dense change of weights: the task vector of full fine-tuning (Ilharco et al. 2023, arXiv:2212.04089).

    dW = D [d_out, d_in],  db = d [d_out];  both start at zero

Fits linear layers, embeddings and norms (there dW is the change of the scale). ``bias``: whether f's biases change too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import Delta, Params
from anabranch.core.site import Site
from anabranch.delta._common import shapes


@dataclass(frozen=True)
class Dense(Delta):
    bias: bool = True
    at: ClassVar = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out")
    lr: ClassVar[float] = 1e-4

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        return {n: torch.zeros(shape) for n, shape in shapes(site, "dense").items() if n == "W" or self.bias}

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return p["W"], p.get("b")
