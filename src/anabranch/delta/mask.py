"""A learned binary mask over f's weights (Zhao et al. 2020, arXiv:2004.12406; Piggyback, Mallya et al. 2018, arXiv:1801.06519).

    dW = W * (m - 1),  m = [s > threshold] [d_out, d_in];  the gradient passes the threshold unchanged (straight-through)

``start``: score s of a kept weight at the beginning. ``threshold``: what a score must exceed for its weight to stay.
``sparsity``: share of the weights that are off at the beginning, drawn at random, as far below the threshold as the others
are above it; at 0 a fresh slot changes nothing, papers start at 0.03 to 0.1. Upper layers suffice: ``at:
[attention.value[-3:], mlp.in[-3:]]``. Stored and served as bits: one eighth of a byte per weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import Delta, Params
from anabranch.core.score import kept
from anabranch.core.site import Site
from anabranch.delta._bits import pack, unpack
from anabranch.delta._site import linear
from anabranch.errors import InputError
from anabranch.types import Fraction, Positive

rows = ("binary-masking",)


@dataclass(frozen=True)
class Mask(Delta):
    start: Positive = 0.01
    threshold: float = 0.0
    sparsity: Fraction = 0.0
    at: ClassVar[tuple[str, ...]] = ("attention.query", "attention.value")

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        linear(site, "a mask")
        if self.start <= self.threshold:
            raise InputError(f"start is above threshold, so that weights are kept: above {self.threshold:g}, got {self.start:g}")
        score = torch.full((site.d_out, site.d_in), self.start)
        if self.sparsity:
            score[~kept(torch.rand(score.shape, generator=rng), 1 - self.sparsity)] = 2 * self.threshold - self.start
        return {"score": score}

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        assert W is not None
        if "bits" in p:
            return W * (unpack(p["bits"], 1, W.numel()).view(W.shape).to(W.dtype) - 1), None
        s = p["score"]
        m = (s > self.threshold).to(s.dtype) + (s - s.detach())  # exactly 0 or 1: the brackets are the served bits
        return W * (m - 1), None

    def freeze(self, p: Params) -> Params:
        return {"bits": pack(p["score"] > self.threshold, 1)}
