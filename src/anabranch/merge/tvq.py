"""Task vectors of a few bits, or a common base of more bits and offsets of fewer (Kim et al. 2025, arXiv:2503.06921).

    TVQ:   D_t ~ Q(D_t; bits)
    RTVQ:  D_t ~ B + Q(D_t - B; bits),  B = Q(mean_t D_t; base)

Offsets are taken from the base as it is stored, so they also correct its rounding. Q is the rounding of delta
``quantised``. ``bits``: of each task. ``base``: 0 is TVQ; 3 with 2 ``bits`` is the paper's RTVQ, of 2 + 3/t bits a number.
The base gets more bits as its error reaches every task. ``group``: numbers that share a scale, 0: a whole tensor.
"""

from typing import Annotated

from annotated_types import Interval
from torch import nn

from anabranch.core.bank import Bank, Tree
from anabranch.core.delta import Params
from anabranch.delta._common import named
from anabranch.delta.quantised import Bits, Quantised, coded, restore, stored
from anabranch.merge._trees import bank_of, mapped, stacked, trees_of

rows = ("task-vector-quantization",)


def tvq(
    bank: Bank,
    f: nn.Module,
    *,
    bits: Bits = 4,
    base: Annotated[int, Interval(ge=0, le=8)] = 0,
    group: Annotated[int, Interval(ge=0)] = 0,
) -> Bank:
    """t slots -> t slots of delta quantised."""
    trees, shared = trees_of(f, bank), Params()
    if base:
        mean = mapped(stacked(trees), lambda key, name, rows: rows.mean(0))
        for site in bank.sites:
            for n, t in mean[site.key].items():
                shared |= named(site, stored(t, f"base_{n}", base, group))
                mean[site.key][n] = restore(*coded(t, base, group), t.shape, t.dtype)
        trees = [{s: {n: t - mean[s][n] for n, t in p.items()} for s, p in tree.items()} for tree in trees]
    slots: list[Tree] = []
    for tree in trees:
        packed = {s.key: {n: stored(t, n, bits, group) for n, t in tree[s.key].items()} for s in bank.sites}
        slots.append({s.key: named(s, {n: t for p in packed[s.key].values() for n, t in p.items()}) for s in bank.sites})
    return bank_of(Quantised(bits=bits, base=base, group=group), bank.sites, slots, shared)
