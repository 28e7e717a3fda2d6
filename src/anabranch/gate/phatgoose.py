"""PHATGOOSE: experts trained apart, routed by token with keys that each owner learned afterwards (Muqeeth et al. 2024,
arXiv:2402.05859).

    dy = sum_k w_k Delta_k,  w = softmax over the top k of  norm(v_k) . norm(x) / sqrt(d)

norm: to mean 0 and variance 1 over the d numbers of a vector, as LayerNorm without scale. v_k [d] per slot and site starts
at zero. When its expert is done, v_k alone is trained on the expert's own data with dy = sigmoid(v_k . x) Delta_k, which
is the gate that ``learner`` returns; so a new expert needs no other's data and moves no other's key.

``top``: slots that a token keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import layer_norm

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.gate._token import asking, top_softmax, width
from anabranch.types import Count

rows = ("phatgoose",)


@dataclass(frozen=True)
class Phatgoose(Gate):
    top: Count = 2
    library: ClassVar[bool] = True

    def key(self, site: Site, p: Params, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        return {"v": torch.zeros(width(site))}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        x, v = (layer_norm(t, t.shape[-1:]) for t in (asking(at), keys["v"].float()))
        return top_softmax(x @ v.mT / x.shape[-1] ** 0.5, on, self.top)

    def learner(self) -> Gate:
        return Sigmoid()


@dataclass(frozen=True)
class Sigmoid(Gate):
    """The gate under which a slot's key is trained, with that slot as the only candidate: w = sigmoid(v . x) by token."""

    def key(self, site: Site, p: Params, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        return {"v": torch.zeros(width(site))}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return torch.sigmoid(asking(at) @ keys["v"].float().mT)
