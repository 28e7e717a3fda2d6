"""What one task changes at one site of f: ``Delta``, what it sees (``At``), and ``mix``, the sum over slots.

A delta is written for ONE row and ONE slot; the core maps it over rows and slots.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.func import functional_call, vmap

from anabranch.core.gate import Gate
from anabranch.core.site import Site

Params = dict[str, Tensor]
Tree = dict[str, Params]  # site key -> name -> tensor


class At(NamedTuple):
    """What one row sees at one site (inside ``mix``), or b rows (outside: every tensor of a row gains a leading b)."""

    x: Tensor  # [l, d_in] the site's input; [l] ids at an embedding
    y: Tensor  # [l, d_out] f's own output there, before any delta of this stage
    mask: Tensor  # [l] bool, True at real tokens
    W: Tensor | None = None  # [d_out, d_in] of the site, the same for all rows
    b: Tensor | None = None  # [d_out]
    module: torch.nn.Module | None = None  # the site itself, for sites that are not linear


class Delta(ABC):
    """A frozen dataclass of settings with ``init`` and ``apply`` and/or ``weight``; its parameters live in a bank."""

    door: ClassVar[Literal["site", "sequence", "attention"]] = "site"
    at: ClassVar[str | Sequence[str]] = ("attention.query", "attention.value")  # where it sits unless told otherwise
    tokenwise: ClassVar[bool] = True  # whether ``apply`` looks at one token at a time
    fixed: ClassVar[frozenset[str]] = frozenset()  # own tensors that are stored but never trained
    needs: ClassVar[frozenset[str]] = frozenset()  # what init reads of its site: {"mean", "cov", "W"}
    anchor: ClassVar[bool] = False  # whether refine also gets the gradient of the divergence from f's own answers
    neutral: ClassVar[bool] = True  # whether a fresh slot leaves f's answers as they are
    settles: ClassVar[float] = 0.0  # the share of its steps before which training is not judged
    lr: ClassVar[float] = 2e-3  # a learning rate (Adam) at which it trains well

    @abstractmethod
    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        """One slot's tensors at one site. ``seen`` holds the statistics named in ``needs``."""

    def shared(self, sites: Sequence[Site], rng: Generator) -> Params:
        """One copy for all sites and slots of a bank."""
        return {}

    def apply(self, p: Params, at: At) -> Tensor:
        """p = own | shared -> dy [l, d_out] (door site), tokens [m, d] (sequence), keys and values [2, m, d_out] (attention)."""
        dW, db = self.weight(p, at.W, at.b)
        if dW is None:
            return at.y * 0 if db is None else db.expand_as(at.y)
        if at.module is not None and not isinstance(at.module, torch.nn.Linear) and at.W is not None:
            if isinstance(at.module, torch.nn.Embedding):
                return torch.nn.functional.embedding(at.x, dW)
            if at.W.ndim == 1:
                moved = {"weight": at.W + dW} | ({} if at.b is None else {"bias": at.b + (0 if db is None else db)})
                return functional_call(at.module, moved, (at.x,)) - at.y
        return at.x @ dW.mT + (0 if db is None else db)

    def factors(self, p: Params) -> tuple[Tensor, Tensor] | None:
        """a [d_in, r], b [r, d_out] where ``apply`` is nothing but ``x a b``: then many slots are applied at once."""
        return None

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The change of the site's weight [d_out, d_in] and bias [d_out] that ``apply`` amounts to; None: no change."""
        raise TypeError(f"{type(self).__name__} changes activations, not weights, so it cannot be folded into f")

    def blend(self, own: Params, w: Tensor) -> Params:
        """Mixes parameters, not outputs: own tensors [k, ...], w [k]."""
        return {n: torch.einsum("k,k...->...", w.to(t.dtype), t) for n, t in own.items()}

    def penalty(self, p: Params, at: At, who: Tensor) -> Tensor:
        """Added to the loss, per site: at of all rows of a pass (x [b, l, d_in]), who [b] the number of each row's task."""
        return at.x.new_zeros(())

    def refine(self, own: Tree, grad: Tree, done: float, anchor: Tree | None = None) -> tuple[Tree, Tree]:
        """Called after each backward on one slot, {site key: {name: tensor}}; ``done`` in (0, 1]: the share of the steps.

        May change numbers and gradients; a zero gradient then means: this number stays. ``anchor``: the gradient of the
        divergence from f's own answers, where the class asks for it.
        """
        return own, grad

    def freeze(self, p: Params) -> Params:
        """What is stored and served: scores -> bits, dense -> sparse."""
        return p


def mix(delta: Delta, gate: Gate, own: Params, shared: Params, keys: Params, mine: Params, on: Tensor | None,
        w: Tensor | None, at: At, same: bool = False, alone: bool = False) -> Tensor:  # fmt: skip
    """``sum_k w_k(x) Delta_k(x)`` of b rows -> [b, l, d_out] (tokens [b, m, d] for door sequence).

    own, keys [b, k, ...] and the gate's mine [b, ...]; ``same``: all rows take the same slots, own and keys come without b,
    and where they are ``alone``, of one task, so does mine.
    on [b, k] bool, None: every slot is on. w [b, k] multiplies the gate's weights. ``torch.where`` and never a product
    hides the slots that are off: NaN times zero would reach other rows.
    """
    lead, size = None if same else 0, next(iter(own.values())).shape[not same]

    def only(own: Params, x: Tensor, y: Tensor, mask: Tensor, *on: Tensor) -> Tensor:
        out = delta.apply({n: t[0] for n, t in own.items()} | shared, at._replace(x=x, y=y, mask=mask)).flatten(0, -2)
        return torch.where(on[0], out, 0.0) if on else out

    if gate.plain and w is None and size == 1:
        return vmap(only, (lead, *[0] * (3 + (on is not None))))(own, at.x, at.y, at.mask, *([] if on is None else [on]))

    def weigh(keys: Params, mine: Params, x: Tensor, y: Tensor, mask: Tensor, on: Tensor) -> Tensor:
        found = gate.weigh(mine, keys, at._replace(x=x, y=y, mask=mask), on)  # [k] or [l, k]
        return found if every else torch.where(on, found, 0.0)

    every, on = on is None, at.mask.new_ones(1, size).expand(len(at.x), -1) if on is None else on
    weight = vmap(weigh, (lead, None if alone else 0, 0, 0, 0, 0))(keys, mine, at.x, at.y, at.mask, on)
    weight = weight if w is None else weight * (w if weight.ndim == 2 else w[:, None])
    summed = gate.on == "outputs" and type(gate).combine is Gate.combine
    if same and gate.top and not torch.compiler.is_compiling():  # slots that no row takes are not computed
        computed = weight.flatten(0, -2).abs().amax(0) != 0
        if computed.any() and not computed.all():
            own, weight, on = {n: t[computed] for n, t in own.items()}, weight[..., computed], on[:, computed]
        if summed and computed.any() and not delta.factors({n: t[0] for n, t in own.items()}):
            return _apart(delta, own, shared, weight, at)

    def chosen(weight: Tensor, on: Tensor) -> Tensor:
        return on & (weight != 0) if gate.top else on.expand_as(weight)  # as weight

    def one(own: Params, weight: Tensor, on: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        row = at._replace(x=x, y=y, mask=mask)
        if gate.on == "params":
            some = chosen(weight, on).view(-1, on.shape[-1]).any(0)
            blended = gate.blend(delta, {n: torch.where(_like(some, t), t, 0) for n, t in own.items()}, weight)
            return torch.where(some.any(), delta.apply(blended | shared, row).flatten(0, -2), 0.0)
        if summed and delta.factors({n: t[0] for n, t in own.items()}):  # one wide product for all
            a, b = vmap(delta.factors)(own)  # type: ignore[misc]
            bad = ~(a.sum((1, 2), dtype=torch.float32) + b.sum((1, 2), dtype=torch.float32)).isfinite()
            if not same or torch.compiler.is_compiling() or bad.any():
                a, b = torch.where(_like(bad, a), 0.0, a), torch.where(_like(bad, b), 0.0, b)
                weight = torch.where(bad & chosen(weight, on), torch.nan, weight)
            h = (x @ a.permute(2, 0, 1).flatten(0, 1).mT).unflatten(-1, (-1, len(a))) * weight.to(x.dtype)[..., None, :]
            return h.flatten(-2) @ b.transpose(0, 1).flatten(0, 1)
        on, out = chosen(weight, on), vmap(lambda p: delta.apply(p | shared, row).flatten(0, -2))(own)
        return gate.combine(weight, torch.where(on.mT[..., None] if on.ndim == 2 else _like(on, out), out, 0.0))

    return vmap(one, (lead, 0, 0, 0, 0, 0))(own, weight, on, at.x, at.y, at.mask)


def _apart(delta: Delta, own: Params, shared: Params, weight: Tensor, at: At) -> Tensor:
    """The sum of mix, slot by slot: each over the rows that take it, or the tokens where weights [b, l, k] are theirs."""
    tokens = weight.ndim == 3 and delta.tokenwise
    x, y, mask, weight = (t.flatten(0, 1)[:, None] if tokens else t for t in (at.x, at.y, at.mask, weight))
    apply, total = lambda p, x, y, mask: delta.apply(p, at._replace(x=x, y=y, mask=mask)).flatten(0, -2), weight
    for i in range(weight.shape[-1]):
        w = weight[..., i].view(len(x), -1, 1)
        rows = (w != 0).any(1).nonzero()[:, 0]
        some = torch.nn.functional.pad(rows, (0, -len(rows) % 8 * tokens))  # of an odd number bits would depend on who else asks
        dy = vmap(partial(apply, {n: t[i] for n, t in own.items()} | shared))(x[some], y[some], mask[some])[: len(rows)]
        w = w[rows].to(dy.dtype)
        total = total if i else dy.new_zeros(len(x), *dy.shape[1:])
        total.index_add_(0, rows, torch.where(w != 0, w * dy, 0.0))
    return total.view(len(at.x), -1, total.shape[-1])


def _like(on: Tensor, t: Tensor) -> Tensor:
    return on.view(-1, *[1] * (t.ndim - 1))
