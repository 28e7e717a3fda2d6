"""One weight change for all tasks, and a mask of it for each: what TALL-masks stores (Wang et al. 2024, arXiv:2405.07813).

    [dW, db] = m * c,  c [n] common to all slots,  m = [s > 0] [n] of a slot;  n counts the site's weights and biases

The gradient passes the threshold unchanged, so masks can also be learned over a fixed c (over a random one, as here where
none is given: Ramanujan et al. 2020, What's hidden in a randomly weighted network, CVPR). ``start``: score s of every
number at the beginning is -start, so that a fresh slot changes nothing. Stored and served as one bit a number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import Delta, Params
from anabranch.core.site import Site
from anabranch.delta._bits import pack, unpack
from anabranch.delta._common import here, named, size, split, spread
from anabranch.types import Positive

NAME = "masked_common"


@dataclass(frozen=True)
class MaskedCommon(Delta):
    start: Positive = 0.01
    at: ClassVar = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out")

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        return named(site, {"score": torch.full((size(site, NAME),), -self.start)})

    def shared(self, sites: Sequence[Site], rng: Generator) -> Params:
        return spread(sites, rng, NAME)

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if mine := here(p, "bits"):
            on = unpack(mine["bits"], 1, len(mine["common"])) > 0
            return split(torch.where(on, mine["common"], 0.0), W, b)
        mine = here(p, "score")
        s = mine["score"]
        return split(mine["common"] * ((s > 0).to(s.dtype) + (s - s.detach())), W, b)  # the brackets are 0 or 1

    def freeze(self, p: Params) -> Params:
        return {n.replace("score@", "bits@"): pack(s > 0, 1) for n, s in p.items()}
