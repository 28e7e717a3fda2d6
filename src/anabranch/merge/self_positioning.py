"""Self Positioning: the best place between embedding models that were trained apart (Li et al. 2024, arXiv:2410.15035).

    D = mu u / |u|,  u = sum_t a_t D_t,  a on the simplex;   min over a and mu of the mean loss of the tasks, by Adam

The direction is a convex combination, and its length is free. The loss is the tasks' own on a few probe rows each (for
retrieval and similarity the contrastive one), equally weighted, so that uneven amounts of training data do not matter.
a = softmax(z) starts uniform; mu starts at the mean length of the task vectors and moves by factors. |.| is over the whole
model. ``steps``, ``lr``: of Adam on z and log mu.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from anabranch.core.bank import Tree
from anabranch.merge._look import Look
from anabranch.merge._trees import descend, mapped, norm, several, stacked
from anabranch.types import Count, Positive

rows = ("self-positioning",)
takes = (2, None)


def self_positioning(trees: Sequence[Tree], look: Look, *, steps: Count = 100, lr: Positive = 5e-2) -> Tree:
    """t trees -> one."""
    several(len(trees), "self_positioning")
    rows, start = stacked(trees), torch.stack([norm(tree) for tree in trees]).mean()
    z, stretch = torch.zeros(len(trees), requires_grad=True), torch.zeros((), requires_grad=True)

    def placed(z: Tensor, stretch: Tensor) -> Tree:
        u = mapped(rows, lambda key, name, d: torch.tensordot(torch.softmax(z, 0), d, 1))
        length = start * stretch.exp() / norm(u).clamp(min=torch.finfo(z.dtype).tiny)
        return {s: {n: length * t for n, t in p.items()} for s, p in u.items()}

    adam = torch.optim.Adam([z, stretch], lr)
    found = descend({"z": z, "stretch": stretch}, lambda: look.losses(placed(z, stretch)).mean()[None], steps, adam)
    return placed(**found)
