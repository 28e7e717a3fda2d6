"""Task-aware mixture of experts: each task has its own router over experts that all tasks train (Gupta et al. 2022,
arXiv:2204.07689).

    dy = sum over the top k of w_k Delta_k,  w = softmax(G_t x),  G_t [k, d] of task t at one site, by token

A token keeps the share of its experts as the softmax over all gives it, so that the choice itself has a gradient. A task
that comes later (``anabranch add``) starts from the router of the seen task that it resembles most: ``borrow``.

``slots``: experts, trained by all tasks together. ``top``: experts that a token keeps, 1 or 2 in the paper.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from anabranch.core.bank import Bank
from anabranch.core.delta import At, Params, Tree
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.errors import InputError
from anabranch.gate._token import asking, highest, placed, width
from anabranch.types import Count

rows = ("task-aware-moe",)


@dataclass(frozen=True)
class TaskAware(Gate):
    slots: Count = 8
    top: Count = 1

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        return {"G": torch.randn(slots, width(site), generator=rng) / width(site) ** 0.5}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        w = torch.softmax(torch.where(on, asking(at) @ own["G"].float().mT, -torch.inf), -1)
        best, ids = highest(w, self.top)
        return placed(w, ids, best)


def borrow(bank: Bank, seen: Tensor, new: Tensor) -> Tree:
    """Gate tensors for a new task: those of the seen task whose vector is nearest by cosine to ``new`` [d].

    ``seen`` [t, d]: a vector of each task that has gate tensors, in their order; for example the mean feature of its texts.
    """
    if len(seen) != len(bank.tables["gate"]) - 1 or not len(seen):
        raise InputError(f"seen has a row for each of the {len(bank.tables['gate']) - 1} tasks with a router, got {len(seen)}")
    near = torch.nn.functional.cosine_similarity(seen, new[None], dim=-1).argmax()
    return bank.tables["gate"].get(1 + int(near))
