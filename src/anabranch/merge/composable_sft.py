"""Composable sparse fine-tuning: lottery tickets of single weights, which add up (Ansell et al. 2022, arXiv:2110.07560).

    (1) fine-tune all of f for task t;  P_t = the share ``density`` of its numbers with the largest |theta - theta_0|
    (2) back to theta_0, fine-tune P_t alone with l1 |theta - theta_0|_1;  phi_t = what changed;   f + phi_t + phi_language

Slots of delta ``sparse`` come back, one per task (a task, a language, a domain); a row that takes several gets their sum.
P_t is chosen over the whole model. ``rounds``: repeats (1) and (2), each time with density / rounds more places.
``dense``: share of the steps that goes into (1).

A recipe: ``train(delta, base, share, starts)`` trains one slot of ``delta`` per task on f + base for a ``share`` of the
steps, from ``starts`` (one tree per task, None is fresh), and returns their bank.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anabranch.core.bank import Bank, Tree
from anabranch.core.score import budget, pick
from anabranch.delta._common import joined
from anabranch.merge._trees import trees_of
from anabranch.types import Count, Fraction, NonNegative, Share

rows = ("composable-sft",)


def composable_sft(
    train: Callable[..., Bank],
    adapted: Any,
    tasks: Any,
    *,
    density: Share = 0.02,
    rounds: Count = 1,
    l1: NonNegative = 0.0,
    dense: Fraction = 0.5,
) -> Bank:
    """One sparse slot per task."""
    starts: list[Tree] | None = None
    on: list[dict[str, Tensor]] = [{} for _ in tasks]  # site key -> [n] bool, which numbers are trained in (2)
    for r in range(rounds):
        full = train("dense", {}, dense / rounds, starts)
        trees = trees_of(adapted.f, full)
        before = starts or [{s: {n: torch.zeros_like(t) for n, t in p.items()} for s, p in tree.items()} for tree in trees]
        for task, (tree, start) in enumerate(zip(trees, before, strict=True)):
            on[task] = chosen(moved(tree, start), on[task], density * (r + 1) / rounds)
        sparse = train({"sparse": {"density": density, "l1": l1}}, {}, (1 - dense) / rounds, tickets(on, before))
        starts = trees_of(adapted.f, sparse)
    return sparse


def moved(tree: Tree, start: Tree) -> dict[str, Tensor]:
    return {s: (joined(p) - joined(start[s])).abs() for s, p in tree.items()}


def chosen(score: dict[str, Tensor], before: dict[str, Tensor], density: float) -> dict[str, Tensor]:
    """Exactly a ``density`` of all numbers: those of ``before``, then those with the highest scores."""
    flat = torch.cat([torch.where(before[s], torch.inf, t) if before else t for s, t in score.items()])
    on = torch.zeros_like(flat, dtype=torch.bool)
    on[pick(flat, budget(len(flat), density))] = True
    return dict(zip(score, on.split([len(t) for t in score.values()]), strict=True))


def tickets(on: list[dict[str, Tensor]], start: list[Tree]) -> list[Tree]:
    """Slots of delta sparse at these places with the values of ``start`` there; places that a task lacks are -1."""
    most = {s: max(1, max(int(task[s].sum()) for task in on)) for s in on[0]}
    slots: list[Tree] = []
    for task, tree in zip(on, start, strict=True):
        slots.append({})
        for s, mask in task.items():
            places = mask.nonzero()[:, 0]
            pad = (0, most[s] - len(places))
            slots[-1][s] = {"values": torch.nn.functional.pad(joined(tree[s])[places], pad),
                            "places": torch.nn.functional.pad(places, pad, value=-1).int()}  # fmt: skip
    return slots
