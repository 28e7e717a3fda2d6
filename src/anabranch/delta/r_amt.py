"""Regularised mask tuning, R-AMT: a mask whose gradients are dropped where they would unlearn f
(Zheng et al. 2023, arXiv:2307.15049).

    P = 1 where sgn(g) sgn(h) >= 0, else |g| / (|g| + |h|);  g <- g if u < P else (1 - drop) g,  u uniform in [0, 1)

g [d_out, d_in] is the loss's gradient of the scores, h that of KL(f's own answers || the tuned answers): where both point
the same way g stays, where they disagree it stays the more surely the larger it is. ``drop``: share of a dropped entry that
is taken away. The other settings are those of ``mask``. It sits in the attention blocks, where the gradients are largest.
Without h, as in a slot that tasks share, nothing is dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import Params, Tree
from anabranch.core.site import Site
from anabranch.delta.mask import Mask
from anabranch.types import Share

rows = ("r-amt-mask-tuning",)


@dataclass(frozen=True)
class RAmt(Mask):
    drop: Share = 1.0
    at: ClassVar[tuple[str, ...]] = ("attention.query", "attention.key", "attention.value", "attention.out")
    anchor: ClassVar[bool] = True

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        return super().init(site, rng, seen) | {"seed": torch.randint(2**62, (), generator=rng)}  # whole: stored, not trained

    def refine(self, own: Tree, grad: Tree, done: float, anchor: Tree | None = None) -> tuple[Tree, Tree]:
        if anchor is None:
            return own, grad
        own, grad = dict(own), dict(grad)
        for site, p in own.items():
            g, h = grad[site]["score"], anchor[site]["score"]
            rng = Generator().manual_seed(int(p["seed"]))  # kept in the slot: a resumed run draws the same numbers
            u = torch.rand(g.shape, generator=rng).to(g.device)
            stays = (g.sign() * h.sign() >= 0) | (u < g.abs() / (g.abs() + h.abs()))
            grad[site] = grad[site] | {"score": torch.where(stays, g, (1 - self.drop) * g)}
            own[site] = p | {"seed": torch.randint(2**62, (), generator=rng).to(p["seed"].device)}
        return own, grad
