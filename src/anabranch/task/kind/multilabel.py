"""Any number of labels for a text: one sigmoid per label, with a threshold per label settled on validation."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from anabranch.task.data import Rows
from anabranch.task.kind._base import Kind, Post, Targets, Unit, stacked


class Multilabel(Kind):
    metric: ClassVar[str] = "micro_f1"

    def wide(self) -> bool:
        return True

    def units(self, rows: Rows) -> list[list[Unit]]:
        return [[t] for t in rows.text]

    def target(self, label: Any) -> Tensor:
        return torch.zeros(len(self.labels)).index_fill_(0, torch.tensor(list(label), dtype=torch.long), 1.0)

    def loss(self, out: Tensor, y: Targets, counts: Sequence[int]) -> Tensor:
        return binary_cross_entropy_with_logits(out, stacked(y), reduction="none").sum(-1)

    def entropy(self, out: Tensor, counts: Sequence[int]) -> Tensor:
        """The mean over labels of the entropy of yes or no."""
        return (softplus(out) - out * torch.sigmoid(out)).mean(-1)

    def answer(self, out: Tensor, counts: Sequence[int], post: Post) -> tuple[list[Any], list[Any]]:
        scores = torch.sigmoid(out)
        on = scores > post.get("thresholds", torch.tensor(0.5))
        return [row.nonzero()[:, 0].tolist() for row in on], scores.tolist()

    def settle(self, out: Tensor, y: Targets, counts: Sequence[int], metric: str) -> Post:
        """Per label the threshold of best F1, shrunk to the common one: a label with few rows cannot have its own."""
        truth, scores = stacked(y).numpy() > 0, torch.sigmoid(out).numpy()
        grid = np.linspace(0.05, 0.95, 37)

        def f1(t: Any, p: Any) -> float:
            return 2 * (t & p).sum() / max(1, t.sum() + p.sum())

        common = max(grid, key=lambda g: f1(truth, scores > g))
        best = np.full(truth.shape[1], common)
        for c in range(truth.shape[1]):
            own = max(grid, key=lambda g: (f1(truth[:, c], scores[:, c] > g), -abs(g - common)))
            weight = truth[:, c].sum() / (truth[:, c].sum() + 10)
            best[c] = weight * own + (1 - weight) * common
        return {"thresholds": torch.tensor(best, dtype=torch.float32)}

    def constant(self, y: Targets) -> Tensor:
        """The set of labels with the best micro F1 as everyone's answer: the most frequent ones, as many as pay off."""
        share, order = stacked(y).mean(0).sort(descending=True)
        f1 = share.cumsum(0) / (torch.arange(1, len(share) + 1) + share.sum())
        return torch.full_like(share, -1.0).index_fill_(0, order[: int(f1.argmax()) + 1], 1.0)

    def named(self, prediction: Any, score: Any) -> dict[str, Any]:
        return {"prediction": [self.labels[i] for i in prediction], "scores": dict(zip(self.labels, score, strict=True))}
