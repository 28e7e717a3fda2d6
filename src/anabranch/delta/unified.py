"""The unified view of parameter-efficient tuning: one change of a hidden state, four design axes
(He et al. 2022, arXiv:2110.04366).

    g = scale * act(h D) U,  D [d, size], U [size, d_out];   h = x (parallel) or y (sequential)
    add: dy = g              gated: dy = l (g - y), l a number: the state moves from y towards g

``form``: act; relu = bottleneck, linear = low rank, softmax = attention to ``size`` learned keys D and values U.
``insertion``: whether it reads what the site reads, or what the site gives. ``composition``: how it joins the state;
U starts at zero and l at zero, so a fresh slot changes nothing. ``scale``: s. ``size``: width of the bottleneck.
The modified site is the entry's ``at``; by default the whole MLP, from its input to its output.

The paper's methods are settings of these: the scaled parallel adapter is the default; LoRA of scale alpha / r is
{unified: {form: linear, scale: 2}, at: [attention.query, attention.value]}; an adapter is
{unified: {insertion: sequential, scale: 1}, at: [attention.out, mlp.out]}; prefix tuning, whose l is the attention mass
on the prefix, is :class:`anabranch.delta.prefix.Prefix`; MAM, the mix and match adapter, is the list
[{prefix: {tokens: 30}}, {unified: {size: 64}}].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Delta, Params
from anabranch.core.site import Site
from anabranch.delta._site import ANYWHERE, fits, sits
from anabranch.types import Count, Positive

rows = ("unified-peft-mam",)


@dataclass(frozen=True)
class Unified(Delta):
    form: Literal["relu", "linear", "softmax"] = "relu"
    insertion: Literal["parallel", "sequential"] = "parallel"
    composition: Literal["add", "gated"] = "add"
    scale: Positive = 4.0
    size: Count = 16
    at: ClassVar = "mlp.in->mlp.out"

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        parallel = self.insertion == "parallel"
        sits(site, f"unified ({self.insertion})", *(("linear", "region", "whole") if parallel else ANYWHERE))
        d = site.d_in if parallel else site.d_out
        if self.form == "linear":
            fits(self.size, min(d, site.d_out), site, "size")
        gate = {"gate": torch.zeros(1)} if self.composition == "gated" else {}
        down = torch.randn(d, self.size, generator=rng) / d**0.5
        return {"down": down, "up": torch.zeros(self.size, site.d_out), **gate}

    def apply(self, p: Params, at: At) -> Tensor:
        h = (at.x if self.insertion == "parallel" else at.y) @ p["down"]
        h = {"relu": torch.relu, "linear": torch.clone, "softmax": lambda t: t.softmax(-1)}[self.form](h)
        g = h @ (p["up"] * self.scale)
        return g if self.composition == "add" else p["gate"] * (g - at.y)
