"""One weight change for all tasks and a low-rank one for each: the experts of Twin-Merging (Lu et al. 2024, arXiv:2406.15479).

    dW = C + u v,  db = c + b;  C [d_out, d_in] and c [d_out] common to all slots, u [d_out, r], v [r, d_in], b [d_out] a slot's

u and b start at zero, and C where none is given. ``rank``: r. Blending slots with weights w that sum to 1 gives
C + sum_t w_t u_t v_t, exactly: their factors are stacked, not added. Where W is no matrix (norms), all of v is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._common import here, named, shapes
from anabranch.delta._site import fits
from anabranch.types import Count

NAME = "common_low_rank"


@dataclass(frozen=True)
class CommonLowRank(Delta):
    rank: Count = 16
    at: ClassVar = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out")
    lr: ClassVar[float] = 3e-3

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        rows, *cols = shapes(site, NAME)["W"]
        r = min(self.rank, rows, *cols)
        factors = {"u": torch.zeros(rows, r), "v": torch.randn(r, *cols, generator=rng) / cols[0] ** 0.5} if cols else {}
        return named(site, (factors or {"W": torch.zeros(rows)}) | ({"b": torch.zeros(site.d_out)} if site.biased else {}))

    def shared(self, sites: Sequence[Site], rng: Generator) -> Params:
        most = {s: min(shape) for s in sites if len(shape := shapes(s, NAME)["W"]) == 2}
        if most:  # a smaller site keeps all of its own
            largest = max(most, key=lambda s: most[s])
            fits(self.rank, most[largest], largest)
        every = {s.key: named(s, {f"C{n}": torch.zeros(shape) for n, shape in shapes(s, NAME).items()}) for s in sites}
        return {n: t for p in every.values() for n, t in p.items()}

    def apply(self, p: Params, at: At) -> Tensor:
        mine = here(p, "u")
        if "u" not in mine or isinstance(at.module, torch.nn.Embedding):
            return super().apply(p, at)
        out = at.x @ mine["CW"].mT + (at.x @ mine["v"].mT) @ mine["u"].mT
        return out + mine["Cb"] + mine["b"] if "b" in mine else out

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        mine = here(p, "u") or here(p, "W")
        own = mine["u"] @ mine["v"] if "u" in mine else mine["W"]
        return mine["CW"] + own, mine["Cb"] + mine["b"] if "b" in mine else None

    def blend(self, own: Params, w: Tensor) -> Params:
        out = {}
        for n, t in own.items():
            weighted = torch.einsum("k,k...->k...", w.to(t.dtype), t) if not n.startswith("v@") else t
            u = n.startswith("u@")
            out[n] = weighted.movedim(0, 1).flatten(1) if u else t.flatten(0, 1) if n.startswith("v@") else weighted.sum(0)
        return out
