"""AdaMerging: one weight per task and tensor, learned without labels by minimal entropy (Yang et al. 2024, arXiv:2310.02575).

    D_s = sum_t w_st D_st,  w in [0, 1];   min over w of the summed mean entropies of the tasks' answers, by Adam

``scale``: all weights at the start. ``steps``, ``lr``: of Adam. ``by``: "site" has weights for every tensor (layer-wise in the
paper), "task" one weight per task for all of them.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from anabranch.core.bank import Tree
from anabranch.merge._look import Look
from anabranch.types import Count, Positive, Share


def adamerging(
    trees: Sequence[Tree],
    look: Look,
    *,
    scale: Share = 0.3,
    steps: Count = 200,
    lr: Positive = 1e-2,
    by: Literal["site", "task"] = "site",
) -> Tree:
    """t trees -> one."""
    rows = {(s, n): torch.stack([tree[s][n] for tree in trees]) for s, p in trees[0].items() for n in p}
    w = torch.full((len(rows) if by == "site" else 1, len(trees)), scale, requires_grad=True)
    adam = torch.optim.Adam([w], lr)

    def mixed() -> Tree:
        tree: Tree = {s: {} for s in trees[0]}
        for (s, n), d, weights in zip(rows, rows.values(), w.clamp(0, 1).expand(len(rows), -1), strict=True):
            tree[s][n] = torch.tensordot(weights, d, 1)
        return tree

    for _ in range(steps):
        loss = look.entropies(mixed()).sum()
        (w.grad,) = torch.autograd.grad(loss, [w])
        adam.step()
    with torch.no_grad():
        return mixed()
