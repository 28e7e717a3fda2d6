"""ATM: tune a little, merge, start again from there (Zhou et al. 2024, arXiv:2411.03055).

    D_0 = 0;   D_k+1 = D_k + scale * merge_t(tau_t),  tau_t = what a 1/rounds share of training changes in f + D_k for task t

After one pass a task vector is about the task's gradient, so this is multi-task descent that never sees two tasks' data
together. ``rounds``: K; 1 is the merge of ordinary fine-tuning. ``delta``: what is tuned. ``merge``: any merge of form
combine. ``scale``: alpha.

A recipe: ``train(delta, base, share)`` trains a fresh slot of ``delta`` per task on f + base (a dense tree, {} is f itself)
for a ``share`` of the steps and returns their bank.
"""

from collections.abc import Callable
from typing import Any

from anabranch.core.bank import Bank, Tree
from anabranch.merge._trees import combined, dense, mapped, several, stacked, trees_of
from anabranch.types import Count, DeltaKind, Merge, Positive

rows = ("atm",)
takes = (2, None)


def atm(
    train: Callable[..., Bank],
    adapted: Any,
    tasks: Any,
    *,
    rounds: Count = 5,
    delta: DeltaKind = "dense",
    merge: Merge = "mean",
    scale: Positive = 1.0,
) -> Bank:
    """One dense slot for all tasks."""
    several(len(tasks), "atm")
    base: Tree = {}
    for _ in range(rounds):
        bank = train(delta, base, 1 / rounds)
        step = combined(trees_of(adapted.f, bank, base), bank.sites, merge)
        base = mapped(stacked([base, step]), lambda key, name, d: d[0] + scale * d[1])
    return dense(bank.sites, [base])
