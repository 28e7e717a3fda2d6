"""Task arithmetic in the tangent space: models that are linear in their task vectors (Ortiz-Jimenez et al. 2023,
arXiv:2305.12827).

    f_lin(x; D) = f(x) + d/dw f(x; w D) at w = 0   (one forward-mode product with the Jacobian);   D = scale * sum_t D_t

f_lin is linear in D, so what task t adds to an answer is the same beside any other tasks: ``linearised`` runs it, for rows
of many tasks at once, and ``disentanglement`` measures how far a model is from that. Running ordinary task vectors with
``linearised`` is the paper's post-hoc linearisation. ``scale``: of the sum.

A recipe: ``train("dense", base, share, tangent=True)`` trains one slot per task of which rows are answered by ``linearised``
and returns their bank; the merged slot is to be run in the same way (``Linearised``).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.route import Route
from anabranch.delta.dense import Dense
from anabranch.merge._trees import combined, dense, several, trees_of
from anabranch.types import Positive

rows = ("tangent-task-arithmetic",)
takes = (2, None)
space = "tangent"  # in which the merged slot runs


def tangent(train: Callable[..., Bank], adapted: Adapted, tasks: Any, *, scale: Positive = 0.4) -> Bank:
    """One dense slot for all tasks, to be run by :func:`linearised`."""
    several(len(tasks), "tangent")
    bank = train("dense", {}, 1.0, tangent=True)
    return dense(bank.sites, [combined(trees_of(adapted.f, bank), bank.sites, {"task_arithmetic": {"scale": scale}})])


def linearised(
    adapted: Adapted, inputs: Mapping[str, Tensor], ids: Tensor, w: Tensor | None = None, features: Tensor | None = None
) -> Any:
    """The answers of f_lin: ids [b, k] slots of the rows, w [b, k] their weights, 1 unless given. As ``adapted(inputs, ...)``.

    Differentiable in the slots. Attention runs without its fused kernels, which know no forward mode; models that
    would return a cache of keys and values take use_cache=False among their inputs. ``features``: what ``adapted`` begins with.
    """
    held = [dict(source) for source in adapted.sources]

    def by_weights(w: Tensor) -> Any:
        return adapted(inputs, Route.to(ids, w), features)

    def by_numbers(*tables: Tensor) -> Any:
        for source, table in zip(adapted.sources, tables, strict=True):
            source["own"] = table
        return adapted(inputs, Route.to(ids), features)

    run: Callable[..., Any] = by_weights
    toward: tuple[Tensor, ...] = (torch.ones(ids.shape) if w is None else w,)
    if w is None and all(isinstance(bank.delta, Dense) for bank in adapted.banks):
        # a dense slot is linear in its numbers, so their Jacobian is the same, and its rows share one product with its matrix
        run, toward = by_numbers, tuple(h.get("own", b.tables["own"].data) for h, b in zip(held, adapted.banks, strict=True))
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)  # torch's own, at its first jvp
            found = jvp(run, tuple(map(torch.zeros_like, toward)), toward)
    finally:
        for source, was in zip(adapted.sources, held, strict=True):
            source.clear()
            source.update(was)
    return tree_map(torch.add, found[0], found[1])


class Linearised:
    """In the place of an Adapted that has the slots: the model that is linear in them."""

    def __init__(self, adapted: Adapted) -> None:
        self.adapted, self.sources, self.seen = adapted, adapted.sources, None

    def __call__(self, inputs: Mapping[str, Tensor], routes: Route | Sequence[Route | None] | None,
                 features: Tensor | None = None) -> Any:  # fmt: skip
        route = routes if isinstance(routes, Route | None) else routes[0]  # one of each bank, of which there is one
        if route is None:
            return self.adapted(inputs, None, features)
        return linearised(self.adapted, inputs, route.ids, route.w, features)


def differing(a: Tensor, b: Tensor) -> Tensor:
    """The share of rows whose highest answers differ: logits [n, c] twice -> a number."""
    return (a.argmax(-1) != b.argmax(-1)).float().mean()


def disentanglement(
    answer: Callable[[int, Tensor], Tensor],
    first: Sequence[float],
    second: Sequence[float],
    distance: Callable[[Tensor, Tensor], Tensor] = differing,
) -> Tensor:
    """The error xi of two tasks at weights first x second -> [len(first), len(second)]: 0 where neither disturbs the other.

    ``answer(t, w [2])``: the answers [n, c] to rows of task t in 0, 1 of the model with w_0 D_0 + w_1 D_1.
    xi(w) = sum_t distance(answer(t, w_t alone), answer(t, w)).
    """
    out = torch.zeros(len(first), len(second))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            w = torch.tensor([a, b])
            out[i, j] = sum(distance(answer(t, w * torch.eye(2)[t]), answer(t, w)) for t in (0, 1))
    return out
