"""GenKnowSub: what modules know in general is subtracted from each before they are routed or merged (Bagherifard et
al. 2025, arXiv:2505.10939).

    D_t' = D_t - (1/g) sum of the g general deltas       (trained on plain text, the last g slots of the bank)

``general``: g. ``by``: "products" subtracts the weight changes, exactly, a LoRA of rank r then has rank r (1 + g);
"factors" subtracts LoRA's a and b each, (a_t - mean a)(b_t - mean b), as the released code does: another matrix, of rank r.
Deltas of other kinds become dense. The result holds one slot per task without the general ones, and keys that the gate
reads from a slot (Arrow) are read anew.
"""

from typing import Literal

import torch
from torch import Generator, nn

from anabranch.core.bank import Bank, Tree
from anabranch.core.delta import Delta, Params
from anabranch.core.names import make
from anabranch.delta.lora import Lora
from anabranch.errors import InputError
from anabranch.merge._trees import mapped, stacked, trees_of
from anabranch.types import Count

rows = ("genknowsub",)


def genknowsub(bank: Bank, f: nn.Module, *, general: Count = 1, by: Literal["products", "factors"] = "products") -> Bank:
    """[t + general] slots -> t."""
    if len(bank) <= general:
        raise InputError(f"genknowsub subtracts the last {general} slots from those before them, the bank has {len(bank)}")
    delta: Delta = bank.delta
    if not isinstance(delta, Lora):
        if by == "factors":
            raise InputError(f"only LoRA has factors, got {type(delta).__name__}; use by: products")
        delta, trees = make("delta", "dense"), trees_of(f, bank)
        wide = [_minus(tree, mapped(stacked(trees[-general:]), lambda *at: at[2].mean(0))) for tree in trees[:-general]]
    else:
        trees = [{s: {n: p[n] for n in "ab"} for s, p in bank.take(i).items()} for i in range(1, len(bank) + 1)]
        if by == "factors":
            wide = [_minus(tree, mapped(stacked(trees[-general:]), lambda *at: at[2].mean(0))) for tree in trees[:-general]]
        else:
            delta = Lora(rank=delta.rank * (1 + general), alpha=delta.alpha * (1 + general))
            wide = [{s: _stacked([t[s] for t in (tree, *trees[-general:])]) for s in tree} for tree in trees[:-general]]
    return _routed(bank, delta, wide)


def _minus(tree: Tree, mean: Tree) -> Tree:
    return {s: {n: t - mean[s][n] for n, t in p.items()} for s, p in tree.items()}


def _stacked(parts: list[Params]) -> Params:
    """Factors of the first less the mean of the others: the rank axes are put side by side."""
    less = [-1 / (len(parts) - 1)] * (len(parts) - 1)
    return {
        "a": torch.cat([p["a"] for p in parts], 1),
        "b": torch.cat([w * p["b"] for w, p in zip([1.0, *less], parts, strict=True)], 0),
    }


def _routed(bank: Bank, delta: Delta, slots: list[Tree]) -> Bank:
    out = Bank(delta, bank.gate, bank.sites, {}, bank.stage, bank.routes)
    keyed: list[Tree] = []
    for slot in slots:
        keys = {s.key: bank.gate.key(s, slot[s.key], Generator().manual_seed(0)) for s in bank.sites}
        keyed.append({s: p | {f"key.{n}": t for n, t in keys[s].items()} for s, p in slot.items()})
    out.adopt(keyed[0], {}, {})
    out.tables["gate"] = bank.tables["gate"].copy()
    out.add(keyed)
    return out
