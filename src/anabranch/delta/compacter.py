"""Compacter: an adapter whose projections are sums of Kronecker products (Karimi Mahabadi et al. 2021, arXiv:2106.04647).

    dy = gelu(y D + d) U + u,   D [d_out, size], U [size, d_out]
    D = sum_i A_i (x) (s_i t_i),   A_i [n, n],  s_i [d_out/n, rank],  t_i [rank, size/n];   U alike from [size/n] to [d_out/n]

The slow A_i [n, n, n] are one copy for all sites, tasks and both projections; the fast s, t and the biases are each
slot's own, so that a site costs 2 rank (d_out + size) + size + d_out numbers in place of 2 size d_out. It sits behind
the MLP alone (Compacter++); Compacter is ``at: [attention.out, mlp.out]``. The paper also trains the norms: add
{dense: {}, at: norm}. t of U starts at zero, so a fresh slot changes nothing.

``size``: width of the bottleneck. ``n``: how many products; it divides size and d_out. ``rank``: of each s_i t_i.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import ANYWHERE, fits, sits
from anabranch.errors import InputError
from anabranch.types import Count

rows = ("compacter",)


def kron(x: Tensor, a: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """x [l, d] times sum_i a_i (x) (s_i t_i), without building it; a [n, n, n], s [n, d/n, r], t [n, r, m/n] -> [l, m]."""
    parts = torch.einsum("lap,ipr->liar", x.unflatten(-1, (len(a), -1)), s)
    return torch.einsum("libr,irq->lbq", torch.einsum("liar,iab->libr", parts, a), t).flatten(-2)


@dataclass(frozen=True)
class Compacter(Delta):
    size: Count = 24
    n: Count = 4
    rank: Count = 1
    at: ClassVar = "mlp.out"
    lr: ClassVar[float] = 5e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "compacter", *ANYWHERE)
        n, m, d = self.n, self.size // self.n, site.d_out // self.n
        if self.size % n or site.d_out % n:
            raise InputError(f"n divides size ({self.size}) and the {site.d_out} outputs of {site.key}, got {n}")
        fits(self.rank, min(d, m), site)
        s, t, u = (torch.randn(n, k, r, generator=rng) for k, r in ((d, self.rank), (self.rank, m), (m, self.rank)))
        return {
            "down_s": s / site.d_out**0.5, "down_t": t / self.rank**0.5, "down_bias": torch.zeros(self.size),
            "up_s": u / self.size**0.5, "up_t": torch.zeros(n, self.rank, d), "up_bias": torch.zeros(site.d_out),
        }  # fmt: skip

    def shared(self, sites: Sequence[Site], rng: Generator) -> Params:
        return {"A": torch.randn(self.n, self.n, self.n, generator=rng) / self.n**0.5}

    def apply(self, p: Params, at: At) -> Tensor:
        h = torch.nn.functional.gelu(kron(at.y, p["A"], p["down_s"], p["down_t"]) + p["down_bias"])
        return kron(h, p["A"], p["up_s"], p["up_t"]) + p["up_bias"]
