"""ScaLearn: a target task learns only how much of each source task's output it takes (Frohmann et al. 2024, arXiv:2310.01217).

    dy = sum_t omega_t . Delta_t(x),  so  D = sum_t diag(omega_t) D_t   for deltas that are changes of weights

``scales``: "vector" has omega_t [d_out], "scalar" one number (Uniform). ``shared``: the same omega_t at all sites (++; for
vectors: at all sites of one width). No softmax, no sum to 1: omega starts at 1/t plus noise of 0.001 and goes where the
target's loss falls. ``drop``: share of omega that a step leaves out. ``steps``, ``lr``: of Adam. One tree per target.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from anabranch.core.bank import Tree
from anabranch.merge._look import Look
from anabranch.merge._trees import descend, mapped, stacked
from anabranch.types import Count, Fraction, Positive

rows = ("scalearn",)


def scalearn(
    trees: Sequence[Tree],
    look: Look,
    *,
    scales: Literal["vector", "scalar"] = "vector",
    shared: bool = False,
    drop: Fraction = 0.3,
    steps: Count = 200,
    lr: Positive = 6e-3,
) -> list[Tree]:
    """t source trees -> one per target task of ``look``."""
    rows, sites = stacked(trees), {s.key: s for s in look.sites}
    name = {key: f"{s.d_out if scales == 'vector' else ''}" + ("" if shared else key) for key, s in sites.items()}
    width = {name[key]: s.d_out if scales == "vector" else 1 for key, s in sites.items()}

    def scaled(omega: dict[str, Tensor]) -> Tree:
        def one(key: str, n: str, d: Tensor) -> Tensor:  # d [t, d_out, d_in]; embeddings [t, words, d_out]
            w = omega[name[key]]
            return (d * (w[:, :, None] if d.ndim == 3 and sites[key].kind != "embedding" else _last(w, d))).sum(0)

        return mapped(rows, one)

    def thinned(omega: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: w * (torch.rand(w.shape, generator=look.rng) >= drop) / (1 - drop) for n, w in omega.items()}

    def target(j: int) -> Tree:
        omega = {n: (1 / len(trees) + 1e-3 * torch.randn(len(trees), d, generator=look.rng)).requires_grad_()
                 for n, d in width.items()}  # fmt: skip
        adam = torch.optim.Adam(omega.values(), lr)
        if not drop:
            return scaled(descend(omega, lambda: look.losses(scaled(omega), j), steps, adam))
        descend(omega, lambda: look.losses(scaled(thinned(omega)), j), steps, adam)
        return scaled({n: w.detach() for n, w in omega.items()})  # losses under dropout do not say which step was best

    with torch.no_grad():
        targets = len(look.losses(scaled({n: torch.full((len(trees), d), 1 / len(trees)) for n, d in width.items()})))
    return [target(j) for j in range(targets)]


def _last(w: Tensor, d: Tensor) -> Tensor:
    """w [t, d_out or 1] for the last axis of d."""
    return w.view(len(w), *[1] * (d.ndim - 2), w.shape[1])
