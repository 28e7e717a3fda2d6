"""CoDiEmb: one encoder for retrieval and similarity (Zhang et al. 2025, arXiv:2508.11442).

    each step is one task's: the one with the fewest steps so far;  g = g_t
    retrieve:  log sum_j exp(s_ij / tau) - log sum_{j in positives} exp(s_ij / tau),  s the cosines, all positives of the batch
    pair with a number:  (1 - pearson) + KL(softmax(ranks / tau) || softmax(out / std)) + pairwise, see :func:`ordered`

``losses`` takes the place of the kinds' own. Its checkpoints are merged by ``deviation_soup``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, normalize, softplus

from anabranch.balance._common import State, gradients, keep, recall
from anabranch.core.balance import Point

rows = ("codiemb",)
together = 1  # tasks in one step
TAU = 0.05


def codiemb(state: State, point: Point) -> tuple[Tensor, dict[str, Any]]:
    """The direction of the task whose turn it is; a Point of one task is that task's batch."""
    steps = recall(state, "steps", point.names)
    turn = int(steps.argmin())
    grads = gradients(point)
    return grads[turn], dict(state or {}) | keep("steps", point.names[turn : turn + 1], steps[turn : turn + 1] + 1)


def contrastive(out: Tensor, y: Any, counts: Sequence[int]) -> Tensor:
    """out [2n, d]: query, document, query, ... -> [n]; a document that stands twice is a positive at both places."""
    z = normalize(out, dim=-1)
    alike = z[0::2] @ z[1::2].mT / TAU
    same = z[1::2] @ z[1::2].mT > 1 - 1e-6
    same.fill_diagonal_(True)
    return alike.logsumexp(1) - alike.masked_fill(~same, -torch.inf).logsumexp(1)


def ordered(out: Tensor, y: Tensor, counts: Sequence[int]) -> Tensor:
    """out [n, 1] predicted, y [n] or [n, 1] true -> [n], all alike: a loss of the order in the batch, 0 where y is constant.

    Pearson's correlation, KL from the softmax of the mean ranks (scaled to 0 ... 1), and for each pair of other truth
    softplus(-(out_i - out_j)) weighted by how much the truths differ.
    """
    x, y = out.reshape(len(y)), y.reshape(len(y)).to(out.dtype)
    above = (y[:, None] - y).clamp(min=0)
    if not above.any():
        return 0 * x
    unit = [(v - v.mean()) / (v - v.mean()).norm().clamp(min=1e-6) for v in (x, y)]
    below = (y[:, None] > y).sum(1) + ((y[:, None] == y).sum(1) - 1) / 2  # mean rank from 0
    ideal = (below / (len(y) - 1) / TAU).softmax(0)
    listed = kl_div((x / x.detach().std().clamp(min=1e-6)).log_softmax(0), ideal, reduction="sum")
    pairs = (above * softplus(x - x[:, None])).sum() / above.sum()
    return (1 - unit[0] @ unit[1] + listed + pairs).expand(len(y))


losses = {"retrieve": contrastive, "pair": ordered}  # kind -> loss(out, y, counts) -> [n]
