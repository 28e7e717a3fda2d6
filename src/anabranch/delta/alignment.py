"""Task alignment: a linear map of its own for each task on shared vectors (Wu et al. 2020, arXiv:2005.00944).

    y <- y + y R,  R [d, d], or R = A B with A [d, r], B [r, d]

R = 0 at the start: f as it is. On the embeddings, below a module that all tasks share, it turns the tasks' inputs so that what
one learns fits the others. ``rank``: r; without it R is a whole matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import ANYWHERE, fits, sits
from anabranch.types import Count

rows = ("covalign-mtl",)


@dataclass(frozen=True)
class Alignment(Delta):
    rank: Count | None = None
    at: ClassVar = "embedding"

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "an alignment", *ANYWHERE)
        if self.rank is None:
            return {"r": torch.zeros(site.d_out, site.d_out)}
        fits(self.rank, site.d_out, site)
        return {"a": torch.randn(site.d_out, self.rank, generator=rng) / site.d_out**0.5, "b": torch.zeros(self.rank, site.d_out)}

    def apply(self, p: Params, at: At) -> Tensor:
        return at.y @ p["r"] if self.rank is None else at.y @ p["a"] @ p["b"]
