"""A plan's ``balance`` before any work: on toy gradients of as many tasks as will meet, so that what it asks of them is known."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from inspect import signature
from sys import modules
from typing import Any

import torch
from torch import Tensor

from anabranch.balance._recipe import Run
from anabranch.core.names import make
from anabranch.engine.balanced import AtFeatures, toy, way_of
from anabranch.engine.job import Job, Part
from anabranch.engine.passes import seeded
from anabranch.engine.recipe import Trainings
from anabranch.engine.share import balancer, rounds
from anabranch.engine.train import Learner, Trainer
from anabranch.errors import InputError, WorkError

SIZE = 8  # numbers that toy tasks share


def rehearsed(
    spec: Any, jobs: Sequence[Job], apart: Sequence[Sequence[str]], trainer: Callable[[], Trainer], shares: bool = True
) -> list[str]:
    """Notes on a balance without effect; InputError where it cannot be of these tasks, or of a group of ``apart``.

    ``shares``: whether a task that is alone trains under it at all.
    """
    groups = [[job for job in jobs if job.name in names] for names in apart] if len(apart) > 1 else [list(jobs)]
    called, notes = spec if isinstance(spec, str) else next(iter(spec)), list[str]()
    acts = [rehearse(spec, group, trainer, notes) for group in groups if len(group) > 1 or len(groups) == 1]  # not one of many
    if len(jobs) > 1 or (shares and any(acts)):
        return [f"{names} have the same texts: each goes through f once for all, and balance {called} works at the features"
                for names in notes]  # fmt: skip
    return [f"balance {called} does nothing with one task"]


def rehearse(spec: Any, jobs: Sequence[Job], trainer: Callable[[], Trainer], same: list[str]) -> bool:
    """One group of tasks, whose sizes in a step fall when those with fewer rows have no more; False: a task goes its own way.

    ``same`` gets the names of tasks that are balanced at their common features.
    """
    method, names = make("balance", spec), [job.name for job in jobs]
    own = getattr(method, "__wrapped__", method)
    if next(iter(signature(own).parameters)) == "train":
        truth = "truth" in getattr(modules[own.__module__], "needs", ())
        with named(spec, ""):
            method(Toy(jobs, truth), names)
        return True
    with named(spec, ""):
        balance = balancer(spec)
        way = way_of(trainer(), [(job, {}) for job in jobs], balance)
    same.extend([", ".join(names)] * (way.here is AtFeatures))
    steps = [Learner(job, {}, 1).steps for job, _ in way.pairs]
    acts = True
    for size in sorted({len(at_once) for at_once in rounds([[[0]] * n for n in steps], way.most)}, reverse=True):
        few = "" if size == len(jobs) else f" when {size} of the {len(jobs)} tasks meet in a step"
        with named(spec, few), suppress(WorkError):  # what fails by its numbers says nothing of the plan's
            at = toy(names[:size], SIZE)
            direction = balance(None, at)[0]
            acts = direction is None or not torch.allclose(direction, at.grads(at.theta).mean(0))
    return acts


@contextmanager
def named(spec: Any, where: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"balance {spec!r} cannot be of these tasks{where}: {error}; or take another, such as mean") from None


class Toy(Trainings):
    """Trains nothing: random likelihoods and features of the tasks' sizes, and their true targets."""

    def __init__(self, jobs: Sequence[Job], truth: bool) -> None:
        self.rng = seeded("toy")
        self.jobs = [(job, {"b": torch.zeros(job.kind.width(1)[0])} if job.kind.width(1)[0] else {}) for job in jobs]
        self.sure(truth)

    def __call__(self, weights: Mapping[str, float]) -> Run:
        rows = {job.name: torch.rand(2, len(job.parts["train"]), generator=self.rng) for job, _ in self.jobs}
        return Run(None, dict.fromkeys(rows, 0.5), rows)

    def vectors(self, part: Part) -> Tensor:
        return torch.rand(len(part), SIZE, generator=self.rng)
