"""One or several numbers for a text, or for two: a linear head on standardised targets, squared error."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from anabranch.task.data import Rows
from anabranch.task.kind._base import Kind, Post, Targets, Unit, pairwise, stacked


class Regress(Kind):
    metric: ClassVar[str] = "spearman"

    def wide(self) -> bool:
        return not self.two

    def units(self, rows: Rows) -> list[list[Unit]]:
        return [list(t) for t in zip(rows.text, *([rows.text_b] if self.two and rows.text_b else []), strict=True)]

    def width(self, d: int) -> tuple[int, int]:
        return len(self.mean), d * (4 if self.two else 1)

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """In double: a float has seven digits, a time stamp ten."""
        return torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)

    def target(self, label: Any) -> Tensor:
        mean, std = self.scale
        return ((torch.tensor(label, dtype=torch.float64) - mean) / std).float()

    def join(self, z: Tensor, counts: Sequence[int]) -> Tensor:
        return pairwise(z[0::2], z[1::2]) if self.two else z

    def loss(self, out: Tensor, y: Targets, counts: Sequence[int]) -> Tensor:
        return (out - stacked(y)).square().sum(-1)

    def answer(self, out: Tensor, counts: Sequence[int], post: Post) -> tuple[list[Any], list[Any]]:
        mean, std = self.scale
        values = (out * std + mean).tolist()
        return values, values

    def named(self, prediction: Any, score: Any) -> dict[str, Any]:
        value = prediction[0] if len(prediction) == 1 else prediction
        return {"prediction": value, "scores": value}
