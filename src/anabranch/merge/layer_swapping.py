"""Layer swapping: outer blocks from one expert, the middle from another (Bandarkar et al. 2024, arXiv:2410.01335).

    D_l = w_l D_skill,l + (1 - w_l) D_language,l;   w: 0 in the first ``bottom`` and last ``top`` blocks, 1 between,
                                                    rising and falling in a line over ``transition`` blocks each
What lies before the blocks goes with the first, what lies behind with the last. ``skill``: which of the two tasks, 1 or 2.
``bottom``, ``top``: left out, they follow from ``choose``: "size" gives the skill those middle blocks in which its vector has
more of its length than the other's has, "loss" tries every pair and keeps the one of the lowest mean loss.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from anabranch.core.bank import Tree
from anabranch.core.site import blocks
from anabranch.errors import InputError
from anabranch.merge._look import Look
from anabranch.merge._trees import mapped, stacked

rows = ("layer-swapping",)
takes = (2, 2)
Edge = Annotated[int, Ge(0)] | None


def layer_swapping(
    trees: Sequence[Tree],
    look: Look,
    *,
    skill: Literal[1, 2] = 1,
    bottom: Edge = None,
    top: Edge = None,
    transition: Annotated[int, Ge(0)] = 1,
    choose: Literal["size", "loss"] = "size",
) -> Tree:
    """2 trees -> one."""
    if len(trees) != 2:
        raise InputError(f"layer_swapping merges two tasks, a skill and a language, got {len(trees)}")
    pair, n = [trees[skill - 1], trees[2 - skill]], len(blocks(look.f)[1])
    rows, depth = stacked(pair), {s.key: min(max(s.depth, 0), n - 1) for s in look.sites}
    if (bottom or 0) + (top or 0) >= n:
        raise InputError(f"bottom and top leave no block of the {n} to the skill: {bottom} and {top}; make one smaller")

    def swapped(low: int, high: int) -> Tree:
        w = trapezoid(n, low, high, transition)
        return mapped(rows, lambda key, name, d: w[depth[key]] * d[0] + (1 - w[depth[key]]) * d[1])

    lows = range(n) if bottom is None else [bottom]
    highs = range(n) if top is None else [top]
    pairs = [(low, high) for low in lows for high in highs if low + high < n]
    if choose == "loss" and len(pairs) > 1:
        with torch.no_grad():
            losses = [float(look.losses(swapped(*edges)).mean()) for edges in pairs]
        return swapped(*pairs[losses.index(min(losses))])
    more = lengths(pair[0], depth, n) - lengths(pair[1], depth, n)
    return swapped(*max(pairs, key=lambda edges: float(more[edges[0] : n - edges[1]].sum())))


def trapezoid(n: int, bottom: int, top: int, transition: int) -> Tensor:
    """w [n] of the skill: with 6 blocks, 1 and 2 at the ends and a transition of 1: 0 .5 1 .5 0 0."""
    place = torch.arange(n)
    inner = torch.minimum(place - bottom, n - 1 - top - place) + 1  # how deep inside the skill's blocks, 1 at their edge
    return (inner / (transition + 1)).clamp(0, 1)


def lengths(tree: Tree, depth: dict[str, int], n: int) -> Tensor:
    """The share of a task vector's squared length that each block has, [n]."""
    out = torch.zeros(n)
    for key, p in tree.items():
        out[depth[key]] += sum(t.square().sum() for t in p.values())
    return out / out.sum().clamp(min=torch.finfo(out.dtype).tiny)
