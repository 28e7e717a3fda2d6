"""What the claims of merges share: dense trees of slots, merges chosen on validation rows, shares of the single tasks' scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from anabranch.core.bank import Tree
from anabranch.engine.merging import Merged, dense
from anabranch.merge._trees import norm

SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def trees(trained: Any) -> list[Tree]:
    """Each slot's change of f as a dense tree."""
    (bank,) = trained.filled()
    return [dense(trained.suite.f, bank, j + 1) for j in range(len(trained.slots))]


def norms(trained: Any) -> list[float]:
    """The length of each task vector."""
    return [float(norm(tree)) for tree in trees(trained)]


def kept(scores: Mapping[str, float], single: Mapping[str, float]) -> dict[str, float]:
    """Scores as shares of those of the tasks' own slots: the field's normalised accuracy."""
    return {n: s / max(single[n], 1e-3) for n, s in scores.items()}


def scaled(trained: Any, method: Any, scales: Sequence[float] = SCALES) -> list[Merged]:
    """One merge at scale 1, computed once, at several scales: for methods whose result is proportional to their scale."""
    name, settings = (method, {}) if isinstance(method, str) else next(iter(method.items()))
    whole = trained.merged({name: {**settings, "scale": 1.0}})
    found: list[Merged] = []
    for scale in scales:
        bank = replace(whole.bank, tables={n: t.copy() for n, t in whole.bank.tables.items()})
        bank.tables["own"].data *= scale
        found.append(replace(whole, bank=bank))
    return found


def best(trained: Any, made: Iterable[Merged]) -> Merged:
    """The merge with the highest mean validation score."""

    def valid(one: Merged) -> float:
        found = trained.under(one, "valid")
        return sum(found.values()) / len(found)

    return max(made, key=valid)


def stored(bank: Any) -> int:
    """Bytes of all slots and what they share, floats in bf16."""
    total = 0
    for name, table in bank.tables.items():
        rows = 1 if name == "shared" else len(table) - 1
        total += rows * table.n * (2 if table.data.is_floating_point() else table.data.element_size())
    return total


def holding(trained: Any, changed: Sequence[Tree]) -> Any:
    """The same tasks and heads around other dense slots."""
    row = trained.banks[0].tables["own"].row
    return replace(trained, slots=[{"0.own": row(t), "0.keys": torch.zeros(0)} for t in changed])
