"""A text for a text, from a causal f: the loss of the answer's tokens given the text, greedy decoding, exact match.

A unit is the text's tokens, then the answer's and the end token; ``Tokens.starts`` holds where the answer begins.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from anabranch.task.data import Rows
from anabranch.task.kind._base import Kind, Post, Targets, Unit


class Generate(Kind):
    metric: ClassVar[str] = "exact_match"
    speaks: ClassVar[bool] = True

    def units(self, rows: Rows) -> list[list[Unit]]:
        return [[t] for t in rows.text]

    def width(self, d: int) -> tuple[int, int]:
        return 0, 0

    def target(self, label: Any) -> Tensor:
        raise TypeError("a generated text is learned token by token")

    def loss(self, out: Tensor, y: Targets, counts: Sequence[int]) -> Tensor:
        """out [n, l, vocabulary], y [n, l] token ids, -100 where a token is not an answer's -> mean per token [n]."""
        truth = y if isinstance(y, Tensor) else torch.stack(list(y))
        each = cross_entropy(out[:, :-1].transpose(1, 2).float(), truth[:, 1:], reduction="none", ignore_index=-100)
        return each.sum(-1) / (truth[:, 1:] != -100).sum(-1).clamp(min=1)

    def answer(self, out: Tensor, counts: Sequence[int], post: Post) -> tuple[list[Any], list[Any]]:
        raise TypeError("texts are spoken by the backbone, not by a head")

    def constant(self, y: Targets) -> Tensor:
        return torch.zeros(0)
