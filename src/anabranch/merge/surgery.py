"""Representation surgery: what merging shifts in the final features is learned per task and taken off (Yang et al. 2024,
arXiv:2402.02705).

    z^ = z - U relu(D z),  z [d] of the merged model;   min over D [r, d], U [d, r] of mean |z^ - z_own|_1, by Adam

z_own are the features of the task's own model on the same unlabelled rows; models and heads stay. ``merge``: any merge of
form combine, by its name or {name: settings}. ``rank``: r. ``steps``, ``lr``: of Adam, all rows a step. The trees that
come back are the merged model, once per task, and at key "" (the pooled features) an adapter: z^ = z + relu(z down) up.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from anabranch.core.bank import Tree
from anabranch.core.delta import Params
from anabranch.merge._look import Look
from anabranch.merge._trees import combined, descend, several
from anabranch.types import Count, Merge, Positive

rows = ("representation-surgery",)
takes = (2, None)


def surgery(
    trees: Sequence[Tree],
    look: Look,
    *,
    merge: Merge = "task_arithmetic",
    rank: Count = 16,
    steps: Count = 500,
    lr: Positive = 1e-3,
) -> list[Tree]:
    """t trees -> t, of one merged model and each task's own correction."""
    several(len(trees), "surgery")
    merged, out = combined(trees, look.sites, merge), []
    for j in range(len(trees)):
        with torch.no_grad():
            z, own = look.features(merged, j), look.features(look.own(j), j)
        out.append(merged | {"": fit(z, own, rank, steps, lr, look.rng)})
    return out


def fit(z: Tensor, own: Tensor, rank: int, steps: int, lr: float, rng: Generator) -> Params:
    """z, own [rows, d] -> {"down": [d, rank], "up": [rank, d]}; up starts at zero, so no correction is the worst case."""
    d = z.shape[1]
    p = {"down": torch.randn(d, rank, generator=rng) / d**0.5, "up": torch.zeros(rank, d)}
    p = {n: t.requires_grad_() for n, t in p.items()}
    adam = torch.optim.Adam(p.values(), lr)
    return descend(p, lambda: (corrected(z, p) - own).abs().mean()[None], steps, adam)


def corrected(z: Tensor, p: Params) -> Tensor:
    return z + torch.relu(z @ p["down"]) @ p["up"]
