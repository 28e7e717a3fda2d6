"""What every kind of task answers. n rows; a row has one or more units (texts, or a text's words) that f encodes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from anabranch.task.data import Rows

Targets = Tensor | Sequence[Tensor]  # one per row
Unit = str | tuple[str, ...]  # a text, or the words of one
Post = dict[str, Tensor]  # what is fitted on validation outputs: temperature, thresholds, ...


@dataclass(frozen=True)
class Kind(ABC):
    """One task's kind: ``labels`` names its classes, ``mean`` and ``std`` [targets] standardise its numbers."""

    labels: list[str] = field(default_factory=list)
    two: bool = False  # whether a row has a second text
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)

    metric: ClassVar[str] = "accuracy"
    words: ClassVar[bool] = False  # features are per word, not per text
    speaks: ClassVar[bool] = False  # the answer is a text that f itself continues with

    @abstractmethod
    def units(self, rows: Rows) -> list[list[Unit]]:
        """What f encodes for each row."""

    def wide(self) -> bool:
        """Whether the head may also read the features of f's middle, which stand behind those of its end."""
        return False

    def width(self, d: int) -> tuple[int, int]:
        """(outputs, inputs) of the linear head over features of size d; (0, 0): no head."""
        return len(self.labels), d

    @abstractmethod
    def target(self, label: Any) -> Tensor:
        """One row's label as a tensor for ``loss``."""

    def join(self, z: Tensor, counts: Sequence[int]) -> Tensor:
        """Features of the units [sum(counts), d] -> inputs of the head."""
        return z

    @abstractmethod
    def loss(self, out: Tensor, y: Targets, counts: Sequence[int]) -> Tensor:
        """Outputs and targets of n rows -> losses [n]; counts = units (words) of each row."""

    def drift(self, out: Tensor, was: Tensor) -> Tensor:
        """How far outputs [n, c] are from earlier ones, [n]: KL of the softmaxes, or squared differences of numbers."""
        if len(self.labels) < 2:
            return (out - was).square().mean(-1)
        return torch.nn.functional.kl_div(out.log_softmax(-1), was.log_softmax(-1), reduction="none", log_target=True).sum(-1)

    def entropy(self, out: Tensor, counts: Sequence[int]) -> Tensor | None:
        """Entropies of the answers (of words: of each) in nats, which need no label; None: they are no distributions."""
        return None

    @abstractmethod
    def answer(self, out: Tensor, counts: Sequence[int], post: Post) -> tuple[list[Any], list[Any]]:
        """Outputs -> (predictions in the label encoding, scores), one per row."""

    def settle(self, out: Tensor, y: Targets, counts: Sequence[int], metric: str) -> Post:
        """What is fitted on validation outputs and stored with the task."""
        return {}

    def constant(self, y: Targets) -> Tensor:
        """The best constant output [outputs], from training labels."""
        return stacked(y).float().mean(0)

    def named(self, prediction: Any, score: Any) -> dict[str, Any]:
        """A prediction with names instead of indices, as ``predict`` writes it."""
        return {"prediction": prediction, "scores": score}


def stacked(y: Targets) -> Tensor:
    return y if isinstance(y, Tensor) else torch.stack(list(y))


def pairwise(u: Tensor, v: Tensor) -> Tensor:
    """[u, v, |u-v|, u*v] (Conneau et al. 2017, arXiv:1705.02364)."""
    return torch.cat([u, v, (u - v).abs(), u * v], -1)


def entropy(logits: Tensor) -> Tensor:
    """Of the softmax of logits [n, c], -inf where there is no class -> [n]."""
    p = logits.log_softmax(-1)
    return -(p.exp() * p.masked_fill(p.isinf(), 0.0)).sum(-1)


def temperature(out: Tensor, y: Tensor) -> Tensor:
    """The scale of logits [n, c] that minimises their log loss on labels y [n] (Guo et al. 2017, arXiv:1706.04599)."""
    grid = torch.logspace(-1, 1, 41)
    losses = torch.stack([torch.nn.functional.cross_entropy(out / t, y) for t in grid])
    return grid[losses.argmin()]
