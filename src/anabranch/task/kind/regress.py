"""One or several numbers for a text, or for two: a linear head on standardised targets, squared error."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from anabranch.task.data import Rows
from anabranch.task.kind._base import Kind, Post, Targets, Unit, pairwise, stacked


class Regress(Kind):
    metric: ClassVar[str] = "spearman"

    def units(self, rows: Rows) -> list[list[Unit]]:
        return [list(t) for t in zip(rows.text, *([rows.text_b] if self.two and rows.text_b else []), strict=True)]

    def width(self, d: int) -> tuple[int, int]:
        return len(self.mean), d * (4 if self.two else 1)

    def target(self, label: Any) -> Tensor:
        return (torch.tensor(label, dtype=torch.float32) - torch.tensor(self.mean)) / torch.tensor(self.std)

    def join(self, z: Tensor, counts: Sequence[int]) -> Tensor:
        return pairwise(z[0::2], z[1::2]) if self.two else z

    def loss(self, out: Tensor, y: Targets, counts: Sequence[int]) -> Tensor:
        return (out - stacked(y)).square().sum(-1)

    def answer(self, out: Tensor, counts: Sequence[int], post: Post) -> tuple[list[Any], list[Any]]:
        values = (out * torch.tensor(self.std) + torch.tensor(self.mean)).tolist()
        return values, values

    def named(self, prediction: Any, score: Any) -> dict[str, Any]:
        value = prediction[0] if len(prediction) == 1 else prediction
        return {"prediction": value, "scores": value}
