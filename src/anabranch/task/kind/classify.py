"""One of several classes for a text: softmax over a linear head.

Settled on validation: a temperature (Guo et al. 2017), for macro_f1 and mcc a shift of the logits by the class priors
(Menon et al. 2021, arXiv:2007.07314), and the confidence below which answers are less than ``SURE`` right (abstain).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from anabranch.task import metrics
from anabranch.task.data import Rows
from anabranch.task.kind._base import Kind, Post, Targets, Unit, entropy, stacked, temperature

SURE = 0.95


class Classify(Kind):
    def wide(self) -> bool:
        return True

    def units(self, rows: Rows) -> list[list[Unit]]:
        return [[t] for t in rows.text]

    def target(self, label: Any) -> Tensor:
        return torch.tensor(int(label))

    def loss(self, out: Tensor, y: Targets, counts: Sequence[int]) -> Tensor:
        return cross_entropy(out, stacked(y), reduction="none")

    def entropy(self, out: Tensor, counts: Sequence[int]) -> Tensor:
        return entropy(out)

    def answer(self, out: Tensor, counts: Sequence[int], post: Post) -> tuple[list[Any], list[Any]]:
        scores = torch.softmax(out / post.get("temperature", 1.0), -1)
        ids = (out / post.get("temperature", 1.0) + post.get("shift", torch.zeros(out.shape[-1]))).argmax(-1)
        return ids.tolist(), scores.tolist()

    def settle(self, out: Tensor, y: Targets, counts: Sequence[int], metric: str) -> Post:
        truth = stacked(y)
        post: Post = {"temperature": temperature(out, truth)}
        if metric in ("macro_f1", "mcc"):
            prior = one_hot(truth, out.shape[-1]).float().mean(0).clamp(min=0.5 / len(truth)).log()
            shifts = [-tau * prior for tau in (0.0, 0.25, 0.5, 0.75, 1.0)]
            found = [metrics.score(metric, truth.tolist(), self.answer(out, counts, post | {"shift": s})[0]) for s in shifts]
            post["shift"] = shifts[max(range(len(shifts)), key=found.__getitem__)]
        ids, scores = self.answer(out, counts, post)
        post["abstain"] = abstain(torch.tensor(scores).amax(-1), torch.tensor(ids) == truth)
        return post

    def constant(self, y: Targets) -> Tensor:
        return one_hot(stacked(y), len(self.labels)).float().mean(0)

    def named(self, prediction: Any, score: Any) -> dict[str, Any]:
        return {"prediction": self.labels[prediction], "scores": dict(zip(self.labels, score, strict=True))}


def abstain(confidence: Tensor, right: Tensor) -> Tensor:
    """The lowest confidence from which on the answers are right in at least ``SURE`` of the rows (0: always answer)."""
    order = confidence.argsort(descending=True)
    share = right[order].float().cumsum(0) / torch.arange(1, len(order) + 1)
    edge = torch.cat([confidence[order].diff() < 0, torch.tensor([True])])  # equals are answered together or not at all
    good = ((share >= SURE) & edge).nonzero()
    if not len(good):
        return confidence.max()
    last = int(good[-1])
    return torch.tensor(0.0) if last == len(order) - 1 else confidence[order[last]]
