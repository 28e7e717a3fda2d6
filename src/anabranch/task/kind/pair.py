"""A class or a number for two texts: a linear head on [u, v, |u-v|, u*v] of their features."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anabranch.task.data import Rows
from anabranch.task.kind._base import Kind, Post, Targets, Unit, pairwise
from anabranch.task.kind.classify import Classify
from anabranch.task.kind.regress import Regress


class Pair(Kind):
    @property
    def inner(self) -> Kind:
        """What it does with the joined features: classes, or a number when the labels are numbers."""
        return (Classify if self.labels else Regress)(self.labels, True, self.mean, self.std)

    def units(self, rows: Rows) -> list[list[Unit]]:
        return [[a, b] for a, b in zip(rows.text, rows.text_b or (), strict=True)]

    def width(self, d: int) -> tuple[int, int]:
        return len(self.labels) or len(self.mean), 4 * d

    def join(self, z: Tensor, counts: Sequence[int]) -> Tensor:
        return pairwise(z[0::2], z[1::2])

    def target(self, label: Any) -> Tensor:
        return self.inner.target(label)

    def loss(self, out: Tensor, y: Targets, counts: Sequence[int]) -> Tensor:
        return self.inner.loss(out, y, counts)

    def entropy(self, out: Tensor, counts: Sequence[int]) -> Tensor | None:
        return self.inner.entropy(out, counts)

    def answer(self, out: Tensor, counts: Sequence[int], post: Post) -> tuple[list[Any], list[Any]]:
        return self.inner.answer(out, counts, post)

    def settle(self, out: Tensor, y: Targets, counts: Sequence[int], metric: str) -> Post:
        return self.inner.settle(out, y, counts, metric)

    def constant(self, y: Targets) -> Tensor:
        return self.inner.constant(y)

    def named(self, prediction: Any, score: Any) -> dict[str, Any]:
        return self.inner.named(prediction, score)
