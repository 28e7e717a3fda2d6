"""MHR-mu: routing is dropped and the skills are averaged into one delta (Caccia et al. 2022, arXiv:2211.03831).

    p = sum_k p_k / K over the K candidates of the row

Parameters are averaged, not outputs. ``average`` gives the same as a slot, from which a new task starts to tune its own: what
``anabranch add`` does with ``gate: mhr_mu`` in its plan, where the tasks of the run trained skills.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anabranch.core.bank import Bank
from anabranch.core.delta import At, Params, Tree
from anabranch.core.gate import Gate

rows = ("mhr",)


@dataclass(frozen=True)
class MhrMu(Gate):
    on: ClassVar[Literal["outputs", "params"]] = "params"
    library: ClassVar[bool] = True
    trained: ClassVar[bool] = False

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return on / on.sum().clamp(min=1)


def average(bank: Bank) -> Tree:
    """The mean of a bank's slots as one slot, without keys: {site key: {name: tensor}}."""
    slots = [bank.take(i) for i in range(1, len(bank) + 1)]
    w = torch.full((len(slots),), 1 / len(slots))
    names = [n for n in slots[0][bank.sites[0].key] if not n.startswith("key.")]
    return {s.key: bank.delta.blend({n: torch.stack([slot[s.key][n] for slot in slots]) for n in names}, w) for s in bank.sites}
