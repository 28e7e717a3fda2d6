"""ID3: a sparse change of weights whose mask grows step by step (Agarwal et al. 2024, arXiv:2408.14470).

    dW = m * D,  m in {0, 1} [d_out, d_in],  D = 0 at the start;  at the step that ends the share ``done`` of training
    m <- m + the weights outside m of largest |grad| / (|W| + eps)^exponent over all sites, until sum m = done * budget

A weight outside m stays f's own. The gradient that D gets there is straight-through and divided by (|W| + eps)^exponent,
so that its size is the importance: W itself is not stored with a slot. Served as ids and values.

``share``: budget, of the weights of all sites. ``mask``: steps = it grows; first = all at the first step, random = drawn
before (the paper's baselines). ``eps``, ``exponent``: of the importance. ``room``: a site holds at most that many times
its even part of the budget, which is what is stored for it. A slot that was never trained has a random mask.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Generator, Tensor

from anabranch.core.delta import Delta, Params, Tree
from anabranch.core.score import budget, kept, pick
from anabranch.core.site import Site
from anabranch.delta._common import shapes
from anabranch.types import NonNegative, Positive, Share

rows = ("id3",)
DRAWN, CHOSEN = 1, 2  # what m is made of; 0: outside


@dataclass(frozen=True)
class Id3(Delta):
    share: Share = 0.01
    mask: Literal["steps", "first", "random"] = "steps"
    eps: Positive = 1e-3
    exponent: NonNegative = 0.5
    room: Annotated[float, Ge(1)] = 2.0
    at: ClassVar = ("attention.query", "attention.value")
    fixed: ClassVar[frozenset[str]] = frozenset({"m"})

    def most(self, n: int) -> int:
        """How many of a site's n weights may be in m."""
        return min(n, math.ceil(self.room * budget(n, self.share)))

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        shape = shapes(site, "id3")["W"]
        drawn = kept(torch.rand(shape, generator=rng), self.share)
        return {"D": torch.zeros(shape), "m": drawn.to(torch.uint8) * DRAWN}

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        assert W is not None
        if "values" in p:
            return p["values"].new_zeros(W.numel()).scatter(0, p["ids"].long(), p["values"]).view(W.shape), None
        outside = torch.where(p["m"] > 0, 0.0, p["D"] / (W.abs() + self.eps) ** self.exponent)
        return torch.where(p["m"] > 0, p["D"], 0.0) + (outside - outside.detach()), None

    def refine(self, own: Tree, grad: Tree, done: float, anchor: Tree | None = None) -> tuple[Tree, Tree]:
        if self.mask == "random":
            return own, {s: {"D": torch.where(own[s]["m"] > 0, p["D"], 0.0)} for s, p in grad.items()}
        chosen = {s: (p["m"] == CHOSEN).flatten() for s, p in own.items()}
        quota = budget(sum(map(len, chosen.values())), self.share) * (1.0 if self.mask == "first" else done)
        more = round(quota) - sum(int(m.sum()) for m in chosen.values())
        best: list[tuple[Tensor, Tensor]] = []  # of each site, as many as could be taken in all
        for s, m in chosen.items():
            size = max(0, min(more, self.most(len(m)) - int(m.sum())))
            best.append(grad[s]["D"].flatten().abs().nan_to_num().masked_fill(m, -1.0).topk(size))
        scores = torch.cat([values for values, _ in best])
        taken = torch.zeros_like(scores, dtype=torch.bool)
        if more > 0 and len(scores):
            taken[pick(scores, min(more, len(scores)))] = True
        new_own, new_grad = {}, {}
        for (s, m), (_, ids), part in zip(chosen.items(), best, taken.split([len(v) for v, _ in best]), strict=True):
            D, g = own[s]["D"], grad[s]["D"]  # what is new moves from the next step on, by its plain gradient
            new_grad[s] = {"D": torch.where(m.view(g.shape), g, 0.0)}
            now = m.index_fill(0, ids[part], True).view(D.shape)
            new_own[s] = {"D": torch.where(now, D, 0.0), "m": now.to(torch.uint8) * CHOSEN}
        return new_own, new_grad

    def freeze(self, p: Params) -> Params:
        inside = (p["m"] > 0).flatten()
        ids = pick(inside.float(), self.most(len(inside)))
        return {"ids": ids.int(), "values": torch.where(inside, p["D"].flatten(), 0.0)[ids]}
