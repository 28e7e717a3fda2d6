"""Twin-Merging: a shared expert for all tasks and a compressed exclusive one for each (Lu et al. 2024, arXiv:2406.15479).

    D_s = the merge of all tasks;  v_t = SVD_r(D_t - D_s);   a row runs D_s + sum_t w_t v_t

The bank stores D_s once, in common, and v_t as factors of ``rank`` r (a bias or norm in full). Routed by the task's number
it runs D_s + v_t, which is D_t where r is full. w = softmax(R(z)) of inputs whose task nobody names comes from gate
``twin_router``, which reads the features under D_s alone. ``merge``: the shared expert, ``scale``: of task arithmetic.
"""

import torch
from torch import nn

from anabranch.core.bank import Bank, Tree
from anabranch.core.delta import Params
from anabranch.delta._common import named
from anabranch.delta.common_low_rank import CommonLowRank
from anabranch.merge._trees import bank_of, combined, several, trees_of
from anabranch.types import Count, Merge, Positive

rows = ("twin-merging",)
takes = (2, None)


def twin(bank: Bank, f: nn.Module, *, rank: Count = 16, merge: Merge = "task_arithmetic", scale: Positive = 0.3) -> Bank:
    """t slots -> t slots of delta common_low_rank."""
    several(len(bank), "twin")
    trees = trees_of(f, bank)
    shared = combined(trees, bank.sites, {merge: {"scale": scale}} if merge == "task_arithmetic" else merge)
    common = {n: t for s in bank.sites for n, t in named(s, {f"C{n}": t for n, t in shared[s.key].items()}).items()}
    slots: list[Tree] = []
    for tree in trees:
        rest = {s: {n: t - shared[s][n] for n, t in p.items()} for s, p in tree.items()}
        slots.append({s.key: named(s, _exclusive(rest[s.key], rank)) for s in bank.sites})
    most = max((min(p["W"].shape) for p in trees[0].values() if p["W"].ndim == 2), default=rank)
    return bank_of(CommonLowRank(rank=min(rank, most)), bank.sites, slots, common)


def _exclusive(p: Params, rank: int) -> Params:
    if p["W"].ndim < 2:
        return p
    u, s, vh = torch.linalg.svd(p["W"], full_matrices=False)
    root = s[:rank].sqrt()
    return {n: t for n, t in p.items() if n != "W"} | {"u": u[:, :rank] * root, "v": vh[:rank] * root[:, None]}
