"""Twin-Merging's router: a small network reads a row's features and shares out the experts (Lu et al. 2024, arXiv:2406.15479).

    w = softmax(R(z)),  R = linear . leaky_relu . linear . leaky_relu . linear,  widths d -> hidden -> hidden -> k

z [d] is the mean over a row's real tokens. The paper's z is the last layer of the merged model, and w holds at all sites:
``fit`` learns R there, by which task each feature row is of, and ``Route.w`` hands the weights of a pass to every site. As
a gate of a bank, R reads the input of its site. Factors are blended, not outputs. ``hidden``: width of R.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, leaky_relu

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.gate._token import asking, width
from anabranch.types import Count, Positive

rows = ("twin-merging",)


@dataclass(frozen=True)
class TwinRouter(Gate):
    hidden: Count = 64
    on: ClassVar[Literal["outputs", "params"]] = "params"
    library: ClassVar[bool] = True

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        return fresh(width(site), self.hidden, slots, rng)

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        real = at.mask[:, None]
        own = {n: t.float() for n, t in own.items()}
        logits = scores(own, torch.where(real, asking(at), 0).sum(0) / real.sum().clamp(min=1))
        return torch.softmax(torch.where(on, logits, -torch.inf), -1)


def fresh(d: int, hidden: int, slots: int, rng: Generator) -> Params:
    out: Params = {}
    for i, (a, b) in enumerate(((d, hidden), (hidden, hidden), (hidden, slots))):
        out |= {f"W{i}": torch.randn(b, a, generator=rng) * (2 / a) ** 0.5, f"b{i}": torch.zeros(b)}
    return out


def scores(own: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """z [..., d] -> [..., k]."""
    for i in range(2):
        z = leaky_relu(z @ own[f"W{i}"].mT + own[f"b{i}"])
    return z @ own["W2"].mT + own["b2"]


def fit(features: Tensor, tasks: Tensor, slots: int, rng: Generator, *, hidden: Count = 64, steps: Count = 300,
        lr: Positive = 5e-3, drop: float = 0.5) -> Params:  # fmt: skip
    """R from feature rows [n, d] and the task of each [n] in 0..slots-1: cross entropy, Adam, all rows a step.

    Features are standardised while R learns, and that is folded into its first layer; ``drop``: share of the inputs of
    each hidden layer that a step leaves out.
    """
    mean, spread = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    x, p = (features - mean) / spread, {n: t.requires_grad_() for n, t in fresh(features.shape[1], hidden, slots, rng).items()}
    optimiser = torch.optim.AdamW(p.values(), lr=lr, weight_decay=1e-2)
    with torch.enable_grad():
        for _ in range(steps):
            kept = {i: (torch.rand(hidden, generator=rng) >= drop).to(x) / (1 - drop) for i in (1, 2)}
            thinned = {n: t * kept[int(n[1])] if n in ("W1", "W2") else t for n, t in p.items()}
            optimiser.zero_grad()
            cross_entropy(scores(thinned, x), tasks).backward()
            optimiser.step()
    out = {n: t.detach() for n, t in p.items()}
    W = out["W0"] / spread
    return out | {"W0": W, "b0": out["b0"] - W @ mean}
