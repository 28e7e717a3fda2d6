"""Forward passes over rows of many tasks: which rows share one, and what comes out for each unit."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.route import Route
from anabranch.engine.features import TOKENS, Features
from anabranch.engine.job import Job, Part
from anabranch.engine.linear import speak


def seeded(*parts: Any) -> Generator:
    return Generator().manual_seed(zlib.crc32(repr(parts).encode()))


Routes = Callable[[Sequence[int]], Any]  # numbers of rows' owners -> the Route they take, or one of each bank


def encode(
    features: Features, adapted: Adapted, units: Sequence[int], slots: Sequence[int], words: bool,
    routes: Routes = Route.to, watch: Callable[[list[int]], None] | None = None,
) -> list[Tensor]:  # fmt: skip
    """Features of units, each under its slot (or whatever number ``routes`` knows): one [1, d] or [words, d] per unit.

    One forward pass per length, in which the rows of a slot stand together. Where a pass is full, it is cut between slots: how
    the rows of one are divided, and so the bits of its gradient, must not depend on the others. ``watch`` gets the slots of
    each pass behind it.
    """
    room = TOKENS * (1 if torch.is_grad_enabled() else torch.get_num_threads())  # of gradients, the same on any machine
    out: list[Tensor] = [torch.empty(0)] * len(units)
    parts: dict[int, list[list[int]]] = {}  # length -> rows of each pass
    runs: dict[tuple[int, int], list[int]] = {}  # length, slot -> rows
    for i in sorted(range(len(units)), key=lambda i: (features.length(units[i]), slots[i])):
        runs.setdefault((features.length(units[i]), slots[i]), []).append(i)
    for (length, _), run in runs.items():
        most, passes = max(1, room // length), parts.setdefault(length, [[]])
        for piece in (run[at : at + most] for at in range(0, len(run), most)):
            if len(passes[-1]) + len(piece) > most:
                passes.append([])
            passes[-1] += piece
    for passes in parts.values():
        for part in passes:
            owners = [slots[i] for i in part]
            rows = features.forward(adapted, [units[i] for i in part], routes(owners), words)
            for i, row in zip(part, rows, strict=True):
                out[i] = row
            if watch:
                watch(owners)
    return out


def said(features: Features, adapted: Adapted, job: Job, units: Sequence[int], slot: int, routes: Routes = Route.to) -> Tensor:
    """The mean loss of the answers that units of kind generate hold."""
    losses = []
    for length in sorted({features.length(u) for u in units}):
        batch = [u for u in units if features.length(u) == length]
        inputs, hidden = features.entry(batch)
        out = adapted(inputs | {"use_cache": False}, routes([slot] * len(batch)), hidden)
        place = torch.arange(inputs["input_ids"].shape[1])
        begin = torch.tensor([features.tokens[u].starts[0] for u in batch])[:, None]
        truth = torch.where((place >= begin) & inputs["attention_mask"].bool(), inputs["input_ids"], -100)
        losses.append(job.kind.loss(out.logits, truth, ()))
    return torch.cat(losses).mean()


def learned(job: Job, part: Part) -> list[list[int]]:
    """The units of each row in training: a query is learned with a document that belongs to it."""
    if not job.documents:
        return part.units
    return [[*row, job.documents[label[0]]] for row, label in zip(part.units, part.labels, strict=True)]


@dataclass(frozen=True)
class Slot:
    """A :class:`View` through slot 1 of ``adapted.sources``, or what ``routes`` has under 1."""

    features: Features
    adapted: Adapted
    words: bool
    routes: Routes = Route.to

    def __call__(self, units: Sequence[int]) -> Tensor:
        return torch.cat(encode(self.features, self.adapted, units, [1] * len(units), self.words, self.routes))

    def speak(self, units: Sequence[int]) -> list[str]:
        return speak(self.features, self.adapted, units, self.routes([1]))
