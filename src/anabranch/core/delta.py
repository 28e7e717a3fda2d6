"""What one task changes at one site of f: ``Delta``, what it sees (``At``), and ``mix``, the sum over slots.

A delta is written for ONE row and ONE slot; the core maps it over rows and slots.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.func import functional_call, vmap

from anabranch.core.gate import Gate, keep
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
        w: Tensor | None, at: At, same: bool = False) -> Tensor:  # fmt: skip
    """``sum_k w_k(x) Delta_k(x)`` of b rows -> [b, l, d_out] (tokens [b, m, d] for door sequence).

    own, keys [b, k, ...] and the gate's mine [b, ...]; ``same``: all rows take the same slots, tensors come without b.
    on [b, k] bool, None: every slot is on. w [b, k] multiplies the gate's weights. ``torch.where`` and never a product
    hides the slots that are off: NaN times zero would reach other rows.
    """
    lead = None if same else 0

    def one(own: Params, keys: Params, mine: Params, x: Tensor, y: Tensor, mask: Tensor, *more: Tensor) -> Tensor:
        row, rest = At(x, y, mask, at.W, at.b, at.module), iter(more)
        on_k, w_k = (None if t is None else next(rest) for t in (on, w))
        first = next(iter(own.values()))
        if gate.plain and w_k is None and len(first) == 1:
            out = delta.apply({n: t[0] for n, t in own.items()} | shared, row).flatten(0, -2)
            return out if on_k is None else torch.where(on_k, out, 0.0)
        on_k = first.new_ones(len(first), dtype=torch.bool) if on_k is None else on_k
        weight = torch.where(on_k, gate.weigh(mine, keys, row, on_k), 0.0)
        weight = weight if w_k is None else weight * w_k
        on_k = on_k & keep(torch.where(on_k, weight, -torch.inf), gate.top)  # [k] or [l, k]
        weight = torch.where(on_k, weight, 0.0)
        if gate.on == "params":
            some = on_k.view(-1, len(first)).any(0)
            blended = gate.blend(delta, {n: torch.where(_like(some, t), t, 0) for n, t in own.items()}, weight)
            return torch.where(on_k.any(), delta.apply(blended | shared, row).flatten(0, -2), 0.0)
        out = vmap(lambda p: delta.apply(p | shared, row).flatten(0, -2))(own)
        return gate.combine(weight, torch.where(on_k.mT[..., None] if on_k.ndim == 2 else _like(on_k, out), out, 0.0))

    rows = (at.x, at.y, at.mask, *(t for t in (on, w) if t is not None))
    mixed: Tensor = vmap(one, in_dims=(lead, lead, lead, *[0] * len(rows)))(own, keys, mine, *rows)
    return mixed


def _like(on: Tensor, t: Tensor) -> Tensor:
    return on.view(-1, *[1] * (t.ndim - 1))
