"""A label for every word of a text: a linear head on the feature of each word's first token.

Words behind the longest length that f reads have no feature; they get the label that is most common in training.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from anabranch.task.data import Rows
from anabranch.task.kind._base import Kind, Post, Targets, Unit, entropy


class Tag(Kind):
    metric: ClassVar[str] = "span_f1"
    words: ClassVar[bool] = True

    def wide(self) -> bool:
        return True

    def units(self, rows: Rows) -> list[list[Unit]]:
        return [[tuple(t)] for t in rows.tokens or ()]

    def target(self, label: Any) -> Tensor:
        return torch.tensor(list(label), dtype=torch.long)

    def loss(self, out: Tensor, y: Targets, counts: Sequence[int]) -> Tensor:
        truth = torch.cat([t[:n] for t, n in zip(y, counts, strict=True)])
        each = cross_entropy(out, truth, reduction="none").split(list(counts))
        return torch.stack([e.mean() if len(e) else out.sum() * 0 for e in each])

    def entropy(self, out: Tensor, counts: Sequence[int]) -> Tensor:
        return entropy(out)

    def answer(self, out: Tensor, counts: Sequence[int], post: Post) -> tuple[list[Any], list[Any]]:
        scores = torch.softmax(out, -1)
        best = scores.max(-1)
        return [i.tolist() for i in best.indices.split(list(counts))], [s.tolist() for s in best.values.split(list(counts))]

    def constant(self, y: Targets) -> Tensor:
        return one_hot(torch.cat(list(y)), len(self.labels)).float().mean(0)

    def named(self, prediction: Any, score: Any) -> dict[str, Any]:
        return {"prediction": [self.labels[i] for i in prediction], "scores": score}
