"""Which documents of a corpus belong to a query: cosine of their features, no head.

Training: softmax over the documents of the batch at a fixed temperature (van den Oord et al. 2018, arXiv:1807.03748).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from anabranch.task.data import Rows
from anabranch.task.kind._base import Kind, Post, Targets, Unit

SCALE = 20.0  # 1 / temperature


class Retrieve(Kind):
    metric: ClassVar[str] = "ndcg@10"

    def units(self, rows: Rows) -> list[list[Unit]]:
        """The query; a trainer appends a relevant document."""
        return [[t] for t in rows.text]

    def width(self, d: int) -> tuple[int, int]:
        return 0, 0

    def target(self, label: Any) -> Tensor:
        return torch.zeros(())

    def loss(self, out: Tensor, y: Targets, counts: Sequence[int]) -> Tensor:
        """out [2n, d]: query, document, query, ...; a document that two rows share is not its own negative."""
        z = normalize(out, dim=-1)
        alike = SCALE * z[0::2] @ z[1::2].mT
        twins = (z[1::2] @ z[1::2].mT > 1 - 1e-6) & ~torch.eye(len(alike), dtype=torch.bool, device=z.device)
        return cross_entropy(alike.masked_fill(twins, -torch.inf), torch.arange(len(alike), device=z.device), reduction="none")

    def answer(self, out: Tensor, counts: Sequence[int], post: Post) -> tuple[list[Any], list[Any]]:
        raise TypeError("queries are answered from an index of the corpus")

    def constant(self, y: Targets) -> Tensor:
        return torch.zeros(0)

    def named(self, prediction: Any, score: Any) -> dict[str, Any]:
        found = [{"id": i, "score": s} for i, s in zip(prediction, score, strict=True)]
        return {"prediction": found, "scores": score}
