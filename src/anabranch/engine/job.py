"""A task as the loops see it: its rows as numbers of units, its targets, its kind; and the linear head."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anabranch.engine.features import Features
from anabranch.errors import InputError
from anabranch.task import kind as kinds
from anabranch.task.data import Rows, Task
from anabranch.task.kind import Kind
from anabranch.task.metrics import find as find_metric

Head = dict[str, Tensor]  # W [outputs, inputs], b [outputs], mean and scale [inputs]; empty for kinds without one
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Part:
    """n labelled rows: ``units[i]`` are those of row i, ``y[i]`` its target, ``labels[i]`` its label."""

    units: list[list[int]]
    y: Any
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True)
class Job:
    name: str
    kind: Kind
    metric: str
    parts: dict[str, Part]
    documents: dict[str, int]  # id -> unit, for a corpus
    weight: float
    task: Task

    def counts(self, features: Features, units: Sequence[Sequence[int]]) -> list[int]:
        """Units of each row, or its words."""
        return [len(features.tokens[u[0]].starts) if self.kind.words else len(u) for u in units]


def kind_of(task: Task) -> Kind:
    """The kind with this task's facts: label names, and mean and spread of its numbers in training."""
    of = kinds.find(task.kind)
    numbers = task.kind == "regress" or (task.kind == "pair" and not task.labels)
    if not numbers:
        return of(list(task.labels or ()), task.train.text_b is not None)
    values = np.array([y for y in task.train.label if y is not None], float)
    spread = np.where(values.std(0) > 0, values.std(0), 1.0)
    return of([], task.train.text_b is not None, values.mean(0).tolist(), spread.tolist())


def job_of(task: Task, features: Features) -> Job:
    """Tokenises a task into ``features``; rows without a label are left out."""
    kind = kind_of(task)
    parts = {}
    for split in SPLITS:
        rows: Rows = getattr(task, split)
        rows = rows.take([i for i, y in enumerate(rows.label) if y is not None])
        units = kind.units(rows)
        if kind.speaks:
            rows_tokens = features.backbone.spoken(rows.text, rows.label, task.max_length)
        else:
            rows_tokens = features.backbone.tokens([u for row in units for u in row], task.max_length)
        flat = iter(features.add(rows_tokens))
        y = [kind.target(label) for label in rows.label] if kind.width(1)[0] or task.corpus else []
        same = bool(y) and not kind.words
        parts[split] = Part([[next(flat) for _ in row] for row in units], torch.stack(y) if same else y, rows.label)
    features.texts[task.name] = parts["train"].units
    texts = list((task.corpus or {}).values())
    documents = dict(zip(task.corpus or {}, features.add(features.backbone.tokens(texts, task.max_length)), strict=True))
    metric = task.metric or default_metric(task, kind)
    find_metric(metric)
    if kind.speaks and not features.backbone.causal:
        raise InputError(
            f"task {task.name}: kind generate needs a causal backbone (GPT-2, Llama, ...), got {features.backbone.id}"
        )
    return Job(task.name, kind, metric, parts, documents, task.weight, task)


def spelled(labels: Sequence[str]) -> list[str]:
    """Labels as words: ``AddToPlaylist`` and ``add_to_playlist`` are "add to playlist"."""
    return [re.sub(r"(?<=[a-z])(?=[A-Z])|[_/]", " ", label).lower() for label in labels]


def default_metric(task: Task, kind: Kind) -> str:
    """Entity F1 only where the labels are BIO; Spearman for pairs with a number."""
    if kind.words:
        bio = all(name == "O" or name[:2] in ("B-", "I-") for name in kind.labels) and "O" in kind.labels
        return "span_f1" if bio else "token_accuracy"
    return "spearman" if kind.mean else kind.metric


def apply(head: Head, x: Tensor) -> Tensor:
    """``((x - mean) * scale) W^T + b``: x [n, inputs or more] -> [n, outputs]; without a head, x itself."""
    if not head:
        return x
    return (x[:, : head["W"].shape[1]] - head["mean"]) * head["scale"] @ head["W"].mT + head["b"]


def fresh(outputs: int, x: Tensor, d: int) -> Head:
    """A head of zeros over x [n, inputs], which it sees centred and each part of d inputs scaled to mean length 1."""
    mean = x.mean(0)
    lengths = torch.stack([p.norm(dim=1).mean() for p in (x - mean).split(d, dim=1)])
    scale = 1 / lengths.clamp(min=1e-6).repeat_interleave(d)
    return {"W": torch.zeros(outputs, x.shape[1]), "b": torch.zeros(outputs), "mean": mean, "scale": scale}


def leaves_of(head: Head) -> Head:
    """A copy to train: W and b learn, mean and scale stay."""
    return {n: t.clone().requires_grad_(n in ("W", "b")) for n, t in head.items()}


def joined(kind: Kind, z: Tensor, counts: Sequence[int], d: int) -> Tensor:
    """Inputs of a kind's head from features of units [units, d or 2d]."""
    return kind.join(z if kind.wide() else z[:, :d], counts)
