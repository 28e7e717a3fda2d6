"""VisATB: task weights from what tasks give, receive and find hard (Dai et al. 2024, arXiv:2403.04343).

    c_ij = (score_j with all tasks - score_j without task i) / ceiling_j,   d_j = score_j / ceiling_j
    out_i = mean_{j != i} c_ij,  in_j = mean_{i != j} c_ij
    w = 1/2 ( (T softmax(out / tau) + T softmax(-in / tau)) / 2 + T softmax((1 - d) / tau) )

T tasks: T + 1 probing runs, then one with the weights. Tasks that help others, receive little or are hard count more.
``temperature``: tau. ``ceiling``: the best score that a task can have.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from anabranch.balance._recipe import Run, Train
from anabranch.errors import InputError
from anabranch.types import Positive

rows = ("visatb",)


def visatb(train: Train, tasks: Sequence[str], *, temperature: Positive = 0.5, ceiling: Positive = 1.0) -> dict[str, Run]:
    """Each task is served by the one run with the weights."""
    if len(tasks) < 2:
        raise InputError("visatb needs two tasks or more: it measures what they give each other")
    every = train(dict.fromkeys(tasks, 1.0))
    without = [train({t: float(t != left) for t in tasks}) for left in tasks]
    score = torch.tensor([every.scores[t] for t in tasks]) / ceiling
    given = score - torch.tensor([[run.scores[t] for t in tasks] for run in without]) / ceiling  # [i, j]
    final = train(dict(zip(tasks, weights(given, score, temperature).tolist(), strict=True)))
    return dict.fromkeys(tasks, final)


def weights(given: Tensor, score: Tensor, temperature: float) -> Tensor:
    """given [t, t] from i to j, its diagonal unread; score [t], 1 is the best there can be -> [t], of mean 1."""
    t = len(score)
    others = given.clone().fill_diagonal_(0) / (t - 1)
    parts = [(others.sum(1), 0.25), (-others.sum(0), 0.25), (1 - score, 0.5)]
    return t * torch.stack([share * torch.softmax(x / temperature, 0) for x, share in parts]).sum(0)
