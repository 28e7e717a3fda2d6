"""PiSSA: low-rank factors that start as the largest singular directions of the weight (Meng et al. 2024, arXiv:2404.02948).

    dW = (a b - a0 b0)^T,  a [d_in, r], b [r, d_out];  a0 = V_r sqrt(S_r), b0 = sqrt(S_r) U_r^T,  W = U S V^T

a, b start at a0, b0, which are stored and never trained, so a fresh slot changes nothing: W - (a0 b0)^T is what stays frozen.
``rank``: r. The start reads W [d_out, d_in] from ``seen``; with nothing seen, as where only a bank's layout is made, it is that
of a random matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import fits, linear, seen_at
from anabranch.types import Count


@dataclass(frozen=True)
class Pissa(Delta):
    rank: Count = 8
    at: ClassVar = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out")
    fixed: ClassVar[frozenset[str]] = frozenset({"a0", "b0"})
    needs: ClassVar[frozenset[str]] = frozenset({"W"})
    lr: ClassVar[float] = 1e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        name = type(self).__name__.lower()
        linear(site, name)
        fits(self.rank, min(site.d_in, site.d_out), site)
        if seen is None:
            seen = {"W": torch.randn(site.d_out, site.d_in, generator=rng) / site.d_in**0.5, "cov": torch.eye(site.d_in)}
        a, b = (t.float().contiguous() for t in self.start({n: seen_at(seen, n, site, name) for n in self.needs}))
        return {"a": a, "b": b, "a0": a.clone(), "b0": b.clone()}

    def start(self, seen: Params) -> tuple[Tensor, Tensor]:
        """a0 [d_in, r] and b0 [r, d_out] from what is named in ``needs``."""
        u, s, vh = torch.linalg.svd(seen["W"], full_matrices=False)
        root = s[: self.rank].sqrt()
        return vh[: self.rank].mT * root, (u[:, : self.rank] * root).mT

    def apply(self, p: Params, at: At) -> Tensor:
        return at.x @ p["a"] @ p["b"] - at.x @ p["a0"] @ p["b0"]

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return (p["a"] @ p["b"] - p["a0"] @ p["b0"]).mT, None
