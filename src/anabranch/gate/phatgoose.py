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

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.gate._token import alike, asking, top_softmax, width
from anabranch.types import Count

rows = ("phatgoose",)
EPS = 1e-5  # of both standardisations


@dataclass(frozen=True)
class Phatgoose(Gate):
    top: Count = 2
    library: ClassVar[bool] = True

    def key(self, site: Site, p: Params, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        return {"v": torch.zeros(width(site))}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        v, d = keys["v"], keys["v"].shape[-1]
        (x_var, x_mean), (v_var, v_mean) = (torch.var_mean(t.float(), -1, correction=0) for t in (asking(at), v))
        both = alike(at, v) - d * x_mean[:, None] * v_mean  # of both less their means
        return top_softmax(both / ((x_var[:, None] + EPS) * (v_var + EPS) * d).sqrt(), on, self.top)

    def learner(self) -> Gate:
        return Sigmoid()


@dataclass(frozen=True)
class Sigmoid(Gate):
    """The gate under which a slot's key is trained, with that slot as the only candidate: w = sigmoid(v . x) by token."""

    def key(self, site: Site, p: Params, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        return {"v": torch.zeros(width(site))}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return torch.sigmoid(asking(at) @ keys["v"].float().mT)
