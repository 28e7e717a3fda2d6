"""LoraHub: stored modules are composed for a new task by a search over few numbers, without gradients (Huang et al. 2023,
arXiv:2307.13269).

    min over w in [-bound, bound]^t of  L(D(w)) + alpha mean_t |w_t|
    D(w) = (sum_t w_t a_t)(sum_t w_t b_t)   "factors", of rank r, the paper's;   sum_t w_t a_t b_t   "products", of rank t r

L is the mean loss over the validation rows of the task (or tasks) in question; the search starts at w = 0, which is f.
``compose``: which D; LoRA only for factors, other kinds become dense. ``evaluations``: of L, about 40 in the paper.
The search is COBYLA, a linear model in a shrinking trust region, which needs t + 1 evaluations before its first step.
"""

from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn

from anabranch.core.bank import Bank, Tree
from anabranch.core.names import make
from anabranch.delta.lora import Lora
from anabranch.errors import InputError
from anabranch.merge._look import Look
from anabranch.merge._trees import bank_of, mapped, stacked, trees_of
from anabranch.types import Count, NonNegative, Positive

rows = ("lorahub",)


def lorahub(
    bank: Bank,
    f: nn.Module,
    look: Look,
    *,
    compose: Literal["factors", "products"] = "factors",
    evaluations: Count = 40,
    bound: Positive = 1.5,
    alpha: NonNegative = 0.05,
) -> Bank:
    """t slots -> t equal slots: the composed module, of the bank's own kind where that is LoRA."""
    lora, t = isinstance(bank.delta, Lora), len(bank)
    if compose == "factors" and not lora:
        raise InputError(f"only LoRA has factors to compose, got {type(bank.delta).__name__}; use compose: products")
    trees = stacked(trees_of(f, bank))
    own = [{s: {n: p[n] for n in "ab"} for s, p in bank.take(i).items()} if lora else {} for i in range(1, t + 1)]
    factors = stacked(own)

    def blended(w: torch.Tensor, of: Tree) -> Tree:
        return mapped(of, lambda key, name, rows: torch.tensordot(w, rows.float(), 1))

    def change(w: torch.Tensor) -> Tree:
        if compose == "products":
            return blended(w, trees)
        (tree,) = trees_of(f, bank_of(bank.delta, bank.sites, [blended(w, factors)]))
        return tree

    seen: list[tuple[float, np.ndarray]] = []

    def cost(w: np.ndarray) -> float:
        with torch.no_grad():
            loss = float(look.losses(change(torch.as_tensor(w, dtype=torch.float32))).mean())
        seen.append((loss + alpha * float(np.abs(w).mean()), w.copy()))
        return seen[-1][0]

    limits = [(-bound, bound)] * t
    minimize(cost, np.zeros(t), method="COBYLA", bounds=limits, options={"maxiter": evaluations, "rhobeg": bound / 3})
    inside = [(value, w) for value, w in seen if np.abs(w).max() <= bound + 1e-9]
    w = torch.as_tensor(min(inside, key=lambda pair: pair[0])[1], dtype=torch.float32)
    if compose == "factors":
        return bank_of(bank.delta, bank.sites, [blended(w, factors)] * t)
    if not isinstance(bank.delta, Lora):
        return bank_of(make("delta", "dense"), bank.sites, [blended(w, trees)] * t)
    wide = Lora(rank=bank.delta.rank * t, alpha=bank.delta.alpha * t)
    side = {s: {"a": torch.cat([o[s]["a"] for o in own], 1),
                "b": torch.cat([x * o[s]["b"] for x, o in zip(w, own, strict=True)], 0)} for s in own[0]}  # fmt: skip
    return bank_of(wide, bank.sites, [side] * t)
