"""A learned binary mask over f's weights, Piggyback (Mallya et al. 2018, arXiv:1801.06519).

    dW = W * (m - 1),  m = [s > 0] [d_out, d_in];  the gradient passes the threshold unchanged (straight-through)

``start``: score s of every weight at the beginning; all weights are kept, so a fresh slot changes nothing.
Stored and served as bits: one eighth of a byte per weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import Delta, Params
from anabranch.core.site import Site
from anabranch.types import Positive

BITS = 2 ** torch.arange(8, dtype=torch.uint8)


@dataclass(frozen=True)
class Mask(Delta):
    start: Positive = 0.01
    at: ClassVar = ("attention.query", "attention.value")

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        return {"score": torch.full((site.d_out, site.d_in), self.start)}

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        assert W is not None
        if "bits" in p:
            m = (p["bits"][..., None] & BITS.to(W.device) > 0).flatten()[: W.numel()].view(W.shape)
            return torch.where(m, torch.zeros((), dtype=W.dtype), -W), None
        s = p["score"]
        m = (s > 0).to(s.dtype) + (s - s.detach())  # exactly 0 or 1: the brackets are the served bits
        return W * (m - 1), None

    def freeze(self, p: Params) -> Params:
        kept = torch.nn.functional.pad((p["score"] > 0).flatten(), (0, -p["score"].numel() % 8))
        return {"bits": (kept.view(-1, 8) * BITS).sum(1, dtype=torch.uint8)}
