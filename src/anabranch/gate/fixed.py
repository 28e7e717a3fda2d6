"""Constant weights over the candidate slots: a weighted sum of deltas (task arithmetic on outputs; no paper).

    w_k = c_k

c [k] is stored per task and site; it starts at 1/k and is never trained.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site


@dataclass(frozen=True)
class Fixed(Gate):
    trained: ClassVar[bool] = False

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        return {"c": torch.full((slots,), 1 / slots)}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return own["c"]
