"""Which rung of the ladder answers for a task: on validation only, a costlier one only when better by one standard error."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anabranch.engine.features import Features
from anabranch.engine.job import Head, Job
from anabranch.engine.linear import View, answers, index_of, measure, outputs, settle
from anabranch.task.kind._base import Post
from anabranch.task.metrics import spread


@dataclass
class Rung:
    """One way to answer a task, as it would be stored: head, settled numbers, and how it does on validation and test."""

    name: str
    head: Head
    post: Post = field(default_factory=dict)
    valid: float | None = None
    test: float | None = None
    found: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))  # answers on validation
    losses: Tensor = field(default_factory=lambda: torch.zeros(0))  # log losses (squared errors) of validation rows
    packed: dict[str, Tensor] = field(default_factory=dict)  # the slot, by "<bank>/<site>/<name>"; of many, "<slot>.<bank>/..."
    finish: Callable[[], Any] | None = None  # measures it on the test rows, which waits until it is known which rung needs it
    how: dict[str, Any] = field(default_factory=dict)  # a probe's strength and number of inputs
    gate: dict[str, Tensor] = field(default_factory=dict)  # the task's gate tensors, packed


def climb(name: str, job: Job, features: Features, view: View, head: Head, post: Post | None = None) -> Rung:
    """Settles (unless ``post`` is given) one way to answer and measures it on validation; :func:`tested` goes on."""
    rung = Rung(name, head, settle(job, features, view, head) if post is None else post)
    valid = job.parts["valid"]
    index = index_of(job, list(job.documents), features, view) if job.documents else None
    rung.found = answers(job, valid, features, view, head, rung.post, index)
    rung.valid = measure(job, valid, rung.found)
    if head and len(valid):
        out, counts = outputs(job, valid, features, view, head)
        rung.losses = job.kind.loss(out / rung.post.get("temperature", 1.0), valid.y, counts)
    return rung


def tested(rung: Rung, job: Job, features: Features, view: View) -> Rung:
    """The same with its score on the test rows."""
    index = index_of(job, list(job.documents), features, view) if job.documents else None
    rung.test = measure(job, job.parts["test"], answers(job, job.parts["test"], features, view, rung.head, rung.post, index))
    return rung


def better(job: Job, new: Rung, old: Rung, seed: int = 0, errors: float = 1.0) -> bool:
    """Whether ``new``, the costlier, beats ``old`` by ``errors`` standard errors of their paired difference on validation.

    The main metric decides when it can. Where the two lie within these, as they do on few rows, the log loss (squared error)
    decides in the same way, because it also sees how sure the right answers are.
    """
    truth, labels = job.parts["valid"].labels, job.kind.labels
    if new.valid is None or old.valid is None or len(truth) < 2:  # one row has no standard error
        return False
    pairs = [(r.found[0], r.found[1] if labels and not job.kind.words else None) for r in (new, old)]
    error = errors * spread(job.metric, truth, pairs[0], pairs[1], labels, seed=seed)
    gain = new.valid - old.valid
    if abs(gain) > error or not len(new.losses) or not len(old.losses):
        return gain > error
    saved = old.losses - new.losses
    return float(saved.mean()) > errors * float(saved.std() / len(saved) ** 0.5)


def choose(job: Job, rungs: list[Rung], seed: int = 0) -> Rung:
    """``rungs`` from the cheapest to the costliest."""
    best = rungs[0]
    for rung in rungs[1:]:
        if better(job, rung, best, seed):
            best = rung
    return best
