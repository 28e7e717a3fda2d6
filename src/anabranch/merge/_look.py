"""What a merge that learns may ask of the tasks."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Generator, Tensor, nn

from anabranch.core.bank import Tree
from anabranch.core.site import Site


class Look(NamedTuple):
    """What a learned merge of t tasks may ask, ``(trees, look) -> Tree | list[Tree]``; all differentiable in a tree's tensors."""

    losses: Callable[..., Tensor]  # (tree) -> [t] mean loss of each task's few labelled rows under its own head; (tree, j) -> [1]
    entropies: Callable[[Tree], Tensor]  # -> [t] mean entropy of answers, without labels; 0 where they are no distributions
    features: Callable[[Tree, int], Tensor]  # -> [texts, d] of task j's rows, each text (or word) on its own
    own: Callable[[int], Tree]  # task j's own dense slot
    f: nn.Module
    sites: list[Site]
    rng: Generator
