"""GCond, gradient conductor: accumulate, then arbitrate (Alves Limarenko and Studenikina 2025, arXiv:2509.07252).

    g_t = mean over the task's gradients of ``steps`` calls; then the most opposed pair with cos(i, j) < 0, again and again:
        w, l = winner and loser by  0.8 relu(cos(g, g of last time)) + 0.2 (share of the norms, each over its moving average)
        g_w -= sin(a) (g_w . g_l / |g_l|^2) g_l,   g_l -= sin(min(a, pi/2)) (g_w . g_l / |g_w|^2) g_w   at once
        a(cos): pi/2 (1 - r) with r from 1 at 0 down to 0 at -0.5; on to pi at -0.8, by the square of the way; pi below
    g = moving average of sum_t g_t, unbiased

so weak conflicts are projected from both sides, strong ones from the loser's only. Who has won ``window`` times in a row loses.
No direction in the calls between. A call with one task only is the paper's stochastic mode: ``steps`` counts calls.
``beta``: of the moving average of the direction.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from anabranch.balance._common import State, gradients, keep, recall
from anabranch.core.balance import Point
from anabranch.types import Count, Fraction

rows = ("gcond",)
WEAK, MAIN, CRITICAL = 0.0, -0.5, -0.8  # cosines between which a conflict is weak, main and critical
STABLE, STRONG, NORM_BETA = 0.8, 0.2, 0.95


def gcond(
    state: State, point: Point, *, steps: Count = 4, beta: Fraction = 0.85, window: Count = 3
) -> tuple[Tensor | None, dict[str, Any]]:
    new, zero = dict(state or {}), torch.zeros_like(point.theta)
    new |= keep("sum", point.names, recall(state, "sum", point.names, zero) + gradients(point))
    new |= keep("count", point.names, recall(state, "count", point.names) + 1)
    new["calls"] = int(new.get("calls", 0)) + 1
    if new["calls"] % steps:
        return None, new
    names = sorted(key[4:] for key in new if key.startswith("sum:"))
    grads = recall(new, "sum", names) / recall(new, "count", names)[:, None]
    norms = (NORM_BETA * recall(new, "norm", names, 1.0) + (1 - NORM_BETA) * grads.norm(dim=1)).clamp(min=1e-8)
    safe, won = resolved(grads, recall(new, "last", names, zero), norms, names, new.get("won", []), window)
    mean = beta * new.get("mean", zero) + (1 - beta) * safe.sum(0)
    new = {key: value for key, value in new.items() if not key.startswith(("sum:", "count:"))}
    # the direction remembers what was left of each gradient, which is what its next one is compared with
    new |= keep("norm", names, norms) | keep("last", names, safe) | {"won": won, "mean": mean}
    return mean / (1 - beta ** (new["calls"] // steps)), new


def resolved(
    grads: Tensor, last: Tensor, norms: Tensor, names: list[str], won: list[str], window: int
) -> tuple[Tensor, list[str]]:
    """[t, n] without conflicts, and who won of late; at most two arbitrations a task."""
    grads, won = grads.clone(), list(won)
    for _ in range(2 * len(grads)):
        unit = torch.nn.functional.normalize(grads, dim=1, eps=1e-30)
        cosines = (unit @ unit.mT).fill_diagonal_(1.0)
        i, j = divmod(int(cosines.argmin()), len(grads))
        if not cosines[i, j] < WEAK - 1e-6:
            break
        w, l = order(i, j, grads, last, norms, names, won, window)  # noqa: E741
        won = [*won, names[w]][-window:]
        a = angle(float(cosines[i, j]))
        dot, gw, gl = grads[w] @ grads[l], grads[w].clone(), grads[l].clone()
        grads[w] = gw - math.sin(a) * dot / gl.square().sum() * gl
        grads[l] = gl - math.sin(min(a, math.pi / 2)) * dot / gw.square().sum() * gw
    return grads, won


def order(
    i: int, j: int, grads: Tensor, last: Tensor, norms: Tensor, names: list[str], won: list[str], window: int
) -> tuple[int, int]:
    """(winner, loser) of a pair."""
    i, j = min(i, j), max(i, j)
    if won and len(won) == window and len(set(won)) == 1 and won[0] in (names[i], names[j]):
        return (j, i) if won[0] == names[i] else (i, j)
    stable = cosine_similarity(grads[[i, j]], last[[i, j]], dim=1, eps=1e-30).clamp(min=0)
    strong = grads[[i, j]].norm(dim=1) / norms[[i, j]]
    score = STABLE * stable + STRONG * strong / strong.sum()
    return (j, i) if score[1] > score[0] else (i, j)


def angle(cos: float) -> float:
    """The effective angle of a conflict: 0 at the weakest, pi/2 where both are projected in full, pi at the worst."""
    if cos >= MAIN:
        return math.pi / 2 * (1 - min(1.0, (cos - MAIN) / (WEAK - MAIN)))
    return math.pi / 2 * (1 + min(1.0, (cos - MAIN) / (CRITICAL - MAIN)) ** 2)
