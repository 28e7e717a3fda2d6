"""Dynamic weight average (Liu et al. 2019, arXiv:1803.10704).

    w_t = T softmax_t(r_t / temperature),   r_t = mean loss of the last window / mean loss of the window before

so a task whose loss falls slowly gets more weight; 1 until two windows are full.
``window``: steps of a task. ``temperature``: larger makes the weights more equal.
"""

from typing import Any

import torch
from torch import Tensor

from anabranch.balance._common import State, gradients
from anabranch.core.balance import Point
from anabranch.types import Count, Positive


def dwa(state: State, point: Point, *, window: Count = 25, temperature: Positive = 2.0) -> tuple[Tensor, dict[str, Any]]:
    new, rates = dict(state or {}), []
    for name, loss in zip(point.names, point.losses(point.theta).detach().float(), strict=True):
        seen = torch.as_tensor(new.get(f"losses:{name}", []))
        past = torch.cat([seen, loss[None]])[-2 * window :]
        new[f"losses:{name}"] = past
        old, late = past[:window].mean(), past[window:].mean()
        rates.append(late / old if len(past) == 2 * window else torch.ones(()))
    weights = len(rates) * torch.softmax(torch.stack(rates) / temperature, 0)
    return weights @ gradients(point), new
