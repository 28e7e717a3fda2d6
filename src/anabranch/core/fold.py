"""Deltas into weights: what a slot changes (``changes``), into f (``fold``)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from anabranch.core.bank import Bank
from anabranch.errors import InputError

Change = tuple[Tensor | None, Tensor | None]  # dW [d_out, d_in], db [d_out]


def changes(f: nn.Module, bank: Bank, slot: int, state: Mapping[str, Tensor] | None = None) -> dict[str, Change]:
    """Site key -> (dW, db) of one slot, in fp32 and in the orientation of :meth:`Site.weight`; ``state``: f's weights."""
    shared = bank.tables["shared"].get(1).get("", {})
    own, out = bank.take(slot), dict[str, Change]()
    for site in bank.sites:
        W, b = site.weight(f, state)
        p = {n: t.float() if t.is_floating_point() else t for n, t in own[site.key].items()}
        try:
            W, b = (None if t is None else t.detach().float() for t in (W, b))
            out[site.key] = bank.delta.weight(p | shared, W, b)
        except TypeError as error:
            raise InputError(str(error)) from None
    return out


def fold(f: nn.Module, parts: Sequence[tuple[Bank, int, float]]) -> dict[str, Tensor]:
    """A new state dict: f's weights plus ``sum w * Delta`` over (bank, slot, w). f itself is not touched.

    InputError when a delta has no weight form, brings a bias where f has none, or parts weights that are one tensor in f.
    """
    state, firsts = dict(f.state_dict()), dict[int, str]()
    for stage in sorted({bank.stage for bank, _, _ in parts}):
        base = dict(state)  # what banks of this stage see: f and the earlier stages
        for bank, slot, w in (part for part in parts if part[0].stage == stage):
            change = changes(f, bank, slot, base)
            for site in bank.sites:
                dW, db = change[site.key]
                site.put(state, None if dW is None else w * dW, None if db is None else w * db)
    for name, t in f.state_dict().items():
        first = firsts.setdefault(t.data_ptr(), name)
        if state[first].shape == t.shape and not torch.equal(state[first], state[name]):
            raise InputError(f"{first} and {name} are one tensor in f and would be two; keep the delta as it is")
    return state
