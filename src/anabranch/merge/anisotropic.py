"""aTLAS: every parameter block of every task vector has its own learned coefficient (Zhang et al. 2024, arXiv:2407.02880).

    D_s = sum_t w_ts D_ts;   min over w of the mean loss (objective "labels") or of the mean entropy ("entropy"), by AdamW

s counts the tensors. ``by``: "site" as above, "task" one w_t for all tensors. ``parts``: every tensor is cut into so many
random parts with a coefficient each (aTLAS x K, a way of fine-tuning with few numbers). ``start``: all coefficients at the
start; 0 is f. ``each``: one composition per task of ``look``, for its loss alone (few-shot transfer), else one for all
(addition). ``forget``: the number of a task whose loss is to rise, 0 for none: then the others are the control, and of the
compositions that are passed through the one that forgets most counts whose control loss is at most 1 / ``control`` times
f's. ``steps``, ``lr``, ``decay``: of AdamW.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from anabranch.core.bank import Tree
from anabranch.errors import InputError
from anabranch.merge._look import Look
from anabranch.merge._trees import descend, mapped, stacked
from anabranch.types import Count, NonNegative, Positive, Share

rows = ("atlas",)


def anisotropic(
    trees: Sequence[Tree],
    look: Look,
    *,
    objective: Literal["labels", "entropy"] = "labels",
    by: Literal["site", "task"] = "site",
    parts: Count = 1,
    start: float = 0.0,
    each: bool = False,
    forget: Annotated[int, Ge(0)] = 0,
    control: Share = 0.95,
    steps: Count = 200,
    lr: Positive = 1e-2,
    decay: NonNegative = 0.1,
) -> Tree | list[Tree]:
    """t trees -> one, or one per task of ``look``."""
    rows = stacked(trees)
    tensors = [(s, n) for s, p in trees[0].items() for n in p]
    which = {(s, n): torch.randint(parts, trees[0][s][n].shape, generator=look.rng) for s, n in tensors if parts > 1}
    row = {key: i if by == "site" else 0 for i, key in enumerate(tensors)}

    def mixed(w: Tensor) -> Tree:  # w [tensors or 1, t, parts]
        def one(s: str, n: str, d: Tensor) -> Tensor:
            c = w[row[s, n]]
            return (c[:, which[s, n]] * d).sum(0) if parts > 1 else torch.tensordot(c[:, 0], d, 1)

        return mapped(rows, one)

    def learned(loss: Callable[[Tensor], Tensor], keep: Callable[[Tensor], Tensor] = lambda value: value[0]) -> Tree:
        w = torch.full((1 + max(row.values()), len(trees), parts), start, requires_grad=True)
        adam = torch.optim.AdamW([w], lr, weight_decay=decay)
        return mixed(descend({"w": w}, lambda: loss(look_at(mixed(w))), steps, adam, keep)["w"])

    look_at = look.losses if objective == "labels" else look.entropies
    with torch.no_grad():
        before = look_at(mixed(torch.zeros(len(tensors), len(trees), parts)))
    if forget > len(before) or (forget and len(before) < 2):
        raise InputError(f"forget is the number of a task, 1 to {len(before)}, with others as its control, got {forget}")
    if forget:
        most = _others(before, forget) / control
        return learned(lambda found: torch.stack([_others(found, forget) - found[forget - 1], _others(found, forget)]),
                       lambda value: torch.where(value[1] <= most + 1e-6, value[0] - value[1], torch.inf))  # fmt: skip
    if each:
        return [learned(lambda found, j=j: found[j : j + 1]) for j in range(len(before))]  # type: ignore[misc]
    return learned(lambda found: found.mean()[None])


def _others(losses: Tensor, j: int) -> Tensor:
    return (losses.sum() - losses[j - 1]) / (len(losses) - 1)
