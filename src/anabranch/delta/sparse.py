"""A few changed weights: their places and values (Ansell et al. 2022, Composable sparse fine-tuning, arXiv:2110.07560).

    [dW, db]_places = values,  0 elsewhere;  places [k] among the site's weights and biases;  loss + l1 sum |values|

``density``: share of the site's numbers that a fresh slot may change, at random places (``merge.composable_sft`` picks
those that full fine-tuning changes most). ``l1``: pull of the values to 0. Place -1 is none: slots of one bank have equally
many places at a site.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.score import budget
from anabranch.core.site import Site
from anabranch.delta._common import size, split
from anabranch.types import NonNegative, Share


@dataclass(frozen=True)
class Sparse(Delta):
    density: Share = 0.02
    l1: NonNegative = 0.0
    at: ClassVar = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out")
    lr: ClassVar[float] = 1e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        n = size(site, "sparse")
        places = torch.randperm(n, generator=rng)[: budget(n, self.density)].sort().values
        return {"values": torch.zeros(len(places)), "places": places.int()}

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        assert W is not None
        values = torch.where(p["places"] >= 0, p["values"], 0.0)
        n = W.numel() + (0 if b is None else b.numel())
        return split(values.new_zeros(n).scatter_add(0, p["places"].clamp(min=0).long(), values), W, b)

    def penalty(self, p: Params, at: At, who: Tensor) -> Tensor:
        return self.l1 * torch.where(p["places"] >= 0, p["values"], 0.0).abs().sum()
