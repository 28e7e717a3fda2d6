"""Rep-MTL: regularises the saliency of the shared representation (Wang et al. 2025, arXiv:2507.21049).

    S_t = d L_t / d Z [b, d],  Z the pooled vectors of b texts that all tasks share
    tsr = mean_b entropy_t(|mean_d S_t| / sum_k |mean_d S_k|)             each text keeps a leading task
    csa = -mean_bt log( exp(cos(A_b, M_bt) / tau) / sum_{k != b} exp(cos(A_b, A_k) / tau) ),  M_bt = S_bt S_bt^T, A_b = sum_t M_bt
    g = A(g_1 ... g_T) + tsr weight * d tsr / d theta + csa weight * d csa / d theta

For tasks that share texts, row for row. ``tsr``, ``csa``: weights of the two terms. ``inner``: the balancer A of the tasks' rows;
where it is linear, the weighted sum of losses and terms goes back through f once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anabranch.balance._common import State, gradients, linear, within
from anabranch.core.balance import Point
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.errors import InputError
from anabranch.types import Balance, NonNegative

rows = ("rep-mtl",)
TAU = 0.1


def rep_mtl(
    state: State, point: Point, *, inner: Balance = "equal", tsr: NonNegative = 0.1, csa: NonNegative = 0.1
) -> tuple[Tensor | None, dict[str, Any]]:
    weights = {"term:tsr": tsr, "term:csa": csa}
    own = [i for i, name in enumerate(point.names) if name not in weights]
    losses = point.losses(point.theta)
    if losses.requires_grad and linear(inner):  # one way back for the weighted sum instead of one for each row
        w = torch.tensor([weights.get(name, 0.0) for name in point.names])
        w[own] = make("balance", inner)(torch.eye(len(own)))
        return torch.autograd.grad(w @ losses, point.theta, retain_graph=True)[0], dict(state or {})
    grads = gradients(point)
    tasks = Point(point.theta.detach(), lambda p: point.losses(p)[own], lambda _: grads[own], [point.names[i] for i in own])
    direction, held = within(inner, state, "inner", tasks)
    terms = [weights[name] * g for name, g in zip(point.names, grads, strict=True) if name in weights]
    return (None if direction is None else sum(terms, start=direction)), held


def term(seen: Mapping[str, At], who: Tensor, losses: Tensor) -> dict[str, Tensor]:
    """seen[""].y [rows, d] pooled vectors with their graph, who [rows] the task of each, losses [t] from them -> two scalars."""
    z = seen[""].y
    counts = who.bincount(minlength=len(losses))
    if len(losses) < 2 or counts.min() < 2 or counts.min() != counts.max():
        raise InputError(f"rep_mtl needs two tasks or more with the same texts, row for row; got rows {counts.tolist()}")
    (s,) = torch.autograd.grad(losses.sum(), z, create_graph=True)
    s = s[who.argsort(stable=True)].view(len(losses), -1, s.shape[-1])  # [t, b, d]
    return {"tsr": entropy(s), "csa": contrast(s)}


def entropy(s: Tensor) -> Tensor:
    """s [t, b, d] -> the mean over texts of the entropy over tasks, in [0, log t]."""
    size = s.mean(-1).abs()
    p = size / size.sum(0).clamp(min=1e-30)
    return -torch.xlogy(p, p).sum(0).mean()


def contrast(s: Tensor) -> Tensor:
    """s [t, b, d]. Products of S S^T are squares of products of S, so no d x d matrix is made."""
    s = s / s.norm(dim=-1).mean().clamp(min=1e-30)  # cosines do not see the scale, rounding does
    square = torch.einsum("tbd,ukd->tbuk", s, s).square()
    anchors = square.sum((0, 2))  # [b, k] = <A_b, A_k>
    mine = torch.diagonal(square, dim1=1, dim2=3).sum(1)  # [t, b] = <M_bt, A_b>
    length = anchors.diagonal().clamp(min=1e-30).sqrt()
    near = mine / (s.square().sum(-1).clamp(min=1e-30) * length) / TAU
    far = (anchors / (length[:, None] * length) / TAU).masked_fill(torch.eye(len(length), dtype=torch.bool), -torch.inf)
    return (far.logsumexp(1) - near).mean()
