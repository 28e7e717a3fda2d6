"""TALL-masks: one merged vector and one bit per task and number give back every task (Wang et al. 2024, arXiv:2405.07813).

    D_t ~ m_t * D,  D = scale * the merge of all tasks,  m_t = [|D_t| > lambda_t |D - D_t|]

The bank that comes back stores D once, in common, and m_t as bits. ``threshold``: lambda_t; left out it is chosen per task
among 0.2 to 0.6 by the loss of its validation rows, 0.4 without any. ``merge``: task arithmetic or TIES with its settings
left alone. ``scale``: 1 gives the sum, which the paper masks.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from anabranch.core.bank import Bank, Tree
from anabranch.core.names import make
from anabranch.delta._bits import pack
from anabranch.delta._common import joined, named
from anabranch.merge._look import Look
from anabranch.merge._trees import bank_of, combined, several, trees_of
from anabranch.merge.consensus import uses
from anabranch.types import Positive

rows = ("tall-masks-consensus",)
takes = (2, None)
GRID = (0.2, 0.3, 0.4, 0.5, 0.6)


def tall_masks(
    bank: Bank,
    f: nn.Module,
    look: Look | None = None,
    *,
    threshold: Positive | None = None,
    merge: Literal["task_arithmetic", "ties"] = "task_arithmetic",
    scale: Positive = 1.0,
) -> Bank:
    """t slots -> t slots of delta masked_common. ``look``: validation rows, where lambda_t is to be chosen."""
    several(len(bank), "tall_masks")
    trees = trees_of(f, bank)
    merged = combined(trees, bank.sites, {merge: {"scale": scale}})
    if threshold is not None or look is None:
        best = [threshold or 0.4] * len(trees)
    else:
        with torch.no_grad():
            found = [[look.losses(_masked(tree, merged, g), j)[0] for g in GRID] for j, tree in enumerate(trees)]
        best = [GRID[int(torch.stack(losses).argmin())] for losses in found]
    flat = {s.key: joined(merged[s.key]) for s in bank.sites}
    common = {n: t for s in bank.sites for n, t in named(s, {"common": flat[s.key]}).items()}
    slots = []
    for tree, g in zip(trees, best, strict=True):
        on: dict[str, Tensor] = {key: uses(joined(tree[key])[None], flat[key], g)[0] for key in flat}
        slots.append({s.key: named(s, {"bits": pack(on[s.key], 1)}) for s in bank.sites})
    return bank_of(make("delta", "masked_common"), bank.sites, slots, common)


def _masked(tree: Tree, merged: Tree, threshold: float) -> Tree:
    return {s: {n: t * uses(tree[s][n][None], t, threshold)[0] for n, t in p.items()} for s, p in merged.items()}
