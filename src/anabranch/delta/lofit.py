"""LoFiT: offsets at a few attention heads, chosen by learned scales (Yin et al. 2024, arXiv:2406.01563).

    1: z <- (1 + A) * z at every head, loss + l1 * sum |A|;   keep the heads of largest |A|_2 over all sites
    2: z <- z + v at the kept heads alone, v from zero;       z, A, v [heads, width], what the output projection W reads
    dW = W * A (columns),  db = W v:  at the end a change of the projection's bias

``heads``: share of all heads that is kept. ``select``: share of the steps that learn A; 0: the heads are drawn at
random and stay. ``l1``: weight of the penalty. ``width``: numbers in a head (f's hidden size / heads); where a plan leaves
it out it is read from f.
A slot that was never trained has offsets, zero at the start, at heads drawn in each site.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params, Tree
from anabranch.core.score import kept
from anabranch.core.site import Site
from anabranch.delta._site import sits
from anabranch.errors import InputError
from anabranch.types import Count, Fraction, NonNegative, Share

rows = ("lofit",)
DRAWN, SCALED, KEPT = 1, 2, 3  # the state of a head; 0: as f has it


@dataclass(frozen=True)
class Lofit(Delta):
    heads: Share = 0.1
    select: Fraction = 0.3
    l1: NonNegative = 5e-4
    width: Count = 32
    at: ClassVar = "attention.out"
    fixed: ClassVar[frozenset[str]] = frozenset({"state"})
    lr: ClassVar[float] = 1e-2
    settles: ClassVar[float] = 0.5

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        sits(site, "lofit", "heads", use="attention.out")
        if site.d_in % self.width:
            raise InputError(
                f"width is f's hidden size / heads and divides the {site.d_in} inputs of {site.key}, got {self.width}"
            )
        n = site.d_in // self.width
        drawn = kept(torch.rand(n, generator=rng), self.heads).to(torch.uint8) * DRAWN
        return {"scale": torch.zeros(n, self.width), "offset": torch.zeros(n, self.width), "state": drawn}

    def moves(self, p: Params) -> tuple[Tensor, Tensor]:
        """A and v [d_in] as they act now: nought where the head's state is another."""
        scale, offset = (p["vector"], p["vector"]) if "vector" in p else (p["scale"], p["offset"])
        state = p["state"][:, None]
        return torch.where(state == SCALED, scale, 0.0).flatten(), torch.where(state % 2 == 1, offset, 0.0).flatten()

    def apply(self, p: Params, at: At) -> Tensor:
        scale, offset = self.moves(p)
        assert at.W is not None
        return (at.x * scale + offset) @ at.W.mT

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        scale, offset = self.moves(p)
        assert W is not None
        return W * scale, W @ offset

    def penalty(self, p: Params, at: At, who: Tensor) -> Tensor:
        return self.l1 * self.moves(p)[0].abs().sum()

    def refine(self, own: Tree, grad: Tree, done: float, anchor: Tree | None = None) -> tuple[Tree, Tree]:
        states = torch.cat([p["state"] for p in own.values()])
        first = bool((states != SCALED).any())  # step: from the next one on every head is scaled
        if self.select == 0 or (states == KEPT).any() or (done < self.select and not first):
            return own, grad
        norms = torch.cat([p["scale"].norm(dim=1) for p in own.values()])
        now = torch.full_like(states, SCALED) if first else kept(norms, self.heads).to(torch.uint8) * KEPT
        parts = dict(zip(own, now.split([len(p["state"]) for p in own.values()]), strict=True))
        fresh = {s: {n: torch.zeros_like(t) for n, t in p.items()} | {"state": parts[s]} for s, p in own.items()}
        return fresh, {s: {n: torch.zeros_like(t) for n, t in p.items()} for s, p in grad.items()}

    def freeze(self, p: Params) -> Params:
        """One vector a head, a scale or an offset by its state, so that a slot is served as it stood in either phase."""
        state = p["state"][:, None]
        kind = torch.where(state == SCALED, p["scale"], p["offset"])
        return {"vector": torch.where(state > 0, kind, 0.0), "state": p["state"]}
