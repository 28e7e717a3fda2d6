"""MixDA: a task's gate over f's own feed-forward layer and domain adapters beside it, by token (Diao et al. 2023,
arXiv:2306.05406).

    dy = sum_k w_k Delta_k,  (w_0, w_1 ... w_k) = softmax(q(x) u / sqrt(size)),  q(x) = x Q,  Q [d, size], u [size, 1 + k]

w_0 is the share of f alone, which changes nothing: the mixture of f and of f with each domain's adapter. Q and u are one
task's at one site, u starts at zero: f and all domains alike. The domain adapters (first stage, unlabelled text) stay as
they are; the task's own adapter is a bank of its own, by_task, in a second stage that sees the mixture. In a plan the domains
are the plan's tasks, whose slots learned from their labels, and a task's head is all that is its own beside Q and u.

``size``: width of the attention.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.gate._token import asking, width
from anabranch.types import Count

rows = ("mixda",)


@dataclass(frozen=True)
class Mixda(Gate):
    size: Count = 16
    library: ClassVar[bool] = True

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        return {
            "Q": torch.randn(width(site), self.size, generator=rng) / width(site) ** 0.5,
            "u": torch.zeros(self.size, 1 + slots),
        }

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        logits = asking(at) @ own["Q"].float() @ own["u"].float() / self.size**0.5
        there = torch.cat([torch.ones_like(on[:1]), on])  # f itself always is
        return torch.softmax(torch.where(there, logits, -torch.inf), -1)[:, 1:]
