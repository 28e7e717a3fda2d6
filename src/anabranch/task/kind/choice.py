"""Which of a row's choices: every choice c is scored against the text by one linear scorer on [t, c, |t-c|, t*c].

The number of choices may differ between rows; the loss is the softmax over a row's own choices.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from anabranch.task.data import Rows
from anabranch.task.kind._base import Kind, Post, Targets, Unit, entropy, pairwise, stacked


class Choice(Kind):
    def units(self, rows: Rows) -> list[list[Unit]]:
        return [[t, *c] for t, c in zip(rows.text, rows.choices or (), strict=True)]

    def width(self, d: int) -> tuple[int, int]:
        return 1, 4 * d

    def target(self, label: Any) -> Tensor:
        return torch.tensor(int(label))

    def join(self, z: Tensor, counts: Sequence[int]) -> Tensor:
        text = torch.tensor([0, *counts[:-1]]).cumsum(0)
        choices = torch.ones(len(z), dtype=torch.bool).index_fill_(0, text, False)
        return pairwise(z[text.repeat_interleave(torch.tensor(counts) - 1)], z[choices])

    def loss(self, out: Tensor, y: Targets, counts: Sequence[int]) -> Tensor:
        return cross_entropy(table(out, counts), stacked(y), reduction="none")

    def entropy(self, out: Tensor, counts: Sequence[int]) -> Tensor:
        return entropy(table(out, counts))

    def answer(self, out: Tensor, counts: Sequence[int], post: Post) -> tuple[list[Any], list[Any]]:
        scores = table(out, counts).softmax(-1)
        return scores.argmax(-1).tolist(), [s[: n - 1] for s, n in zip(scores.tolist(), counts, strict=True)]

    def constant(self, y: Targets) -> Tensor:
        return torch.zeros(1)


def table(out: Tensor, counts: Sequence[int]) -> Tensor:
    """Scores of all rows' choices [sum(counts) - n, 1] -> [n, most choices], -inf where a row has fewer."""
    sizes = torch.tensor(counts) - 1
    first = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    column = torch.arange(int(sizes.max()))
    ids = (first[:, None] + column).clamp(max=len(out) - 1)
    return torch.where(column < sizes[:, None], out[:, 0][ids], -torch.inf)
