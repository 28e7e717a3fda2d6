"""Balances of several trainings: what a recipe may ask for, and which tasks the slots that come out of it serve."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from sys import modules
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from anabranch.balance._common import gradients
from anabranch.balance._recipe import Run
from anabranch.core.balance import Balancer, Point
from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.engine.cache import digest
from anabranch.engine.job import Head, Job, Part
from anabranch.engine.linear import answers, index_of, measure, near, outputs
from anabranch.engine.passes import Slot
from anabranch.engine.share import balancer, expand, share, together
from anabranch.engine.train import Learner, Trainer
from anabranch.errors import InputError

Group = tuple[dict[str, Tensor], list[Learner]]  # numbers of shared slots, and who is served by them


def jointly(
    trainer: Trainer, jobs: Sequence[tuple[Job, Head]], epochs: int, spec: Any, key: str,
    progress: Callable[[int, int], None] = lambda done, of: None, slots: int = 1, apart: Sequence[Sequence[str]] = (),
) -> list[Group]:  # fmt: skip
    """``slots`` slots that all tasks train under a plan's ``balance``; for a recipe those of each run that serves tasks.

    ``apart``: groups of tasks, each of which trains slots of its own.
    """
    if len(apart) > 1:
        parts = [[pair for pair in jobs if pair[0].name in names] for names in apart]
        specs = [spec if len(part) > 1 else "mean" for part in parts]  # one task alone has nothing to be balanced with
        trained = (jointly(trainer, part, epochs, s, digest(key, [job.name for job, _ in part]), progress, slots)
                   for part, s in zip(parts, specs, strict=True))  # fmt: skip
        return [group for groups in trained for group in groups]
    method = make("balance", spec)
    own = getattr(method, "__wrapped__", method)
    if next(iter(signature(own).parameters)) != "train":
        return [share(trainer, jobs, epochs, balancer(spec), key, progress, slots)]
    truth = "truth" in getattr(modules[own.__module__], "needs", ())
    found = method(Trainings(trainer, jobs, epochs, key, progress, slots, truth), [job.name for job, _ in jobs])
    return [
        (run.slot[0], [m for m in run.slot[1] if found[m.job.name] is run])
        for run in dict((id(run), run) for run in found.values()).values()
    ]


def unpacked(
    groups: Sequence[Group], slots: int, banks: Sequence[Bank]
) -> tuple[list[dict[str, Tensor]], dict[str, list[int]], dict[str, Learner]]:
    """Numbers of every slot, which of these a task takes, and its learner; ``banks`` get what their slots have in common."""
    if len(groups) > 1 and any(bank.tables["shared"].n for bank in banks):
        raise InputError("each group of tasks trained apart, so its slots have nothing in common: take a delta such as lora")
    for i, bank in enumerate(banks):
        if f"{i}.shared" in groups[0][0]:
            bank.tables["shared"].data[1] = groups[0][0][f"{i}.shared"][0]
    rows = [{n: t[k] for n, t in theta.items() if not n.endswith(".shared")} for theta, _ in groups for k in range(slots)]
    takes = {m.job.name: list(range(g * slots, (g + 1) * slots)) for g, (_, members) in enumerate(groups) for m in members}
    return rows, takes, {m.job.name: m for _, members in groups for m in members}


class Trainings:
    """Trains shared slots by the tasks' weights (:class:`anabranch.balance._recipe.Train`); kept on disk by these."""

    def __init__(
        self, trainer: Trainer, jobs: Sequence[tuple[Job, Head]], epochs: int, key: str,
        progress: Callable[[int, int], None], slots: int, truth: bool,
    ) -> None:  # fmt: skip
        self.trainer, self.jobs, self.epochs, self.key = trainer, jobs, epochs, key
        self.progress, self.slots, self.truth = progress, slots, truth
        self.known: dict[str, Run] = {}
        self.sure(truth)

    def sure(self, truth: bool) -> None:
        """InputError for a task without likelihoods, where they are asked for."""
        for job, head in self.jobs if truth else ():
            if not head:
                raise InputError(f"{job.name} is of kind {job.task.kind}, which says of no row how likely its label is")

    def __call__(self, weights: Mapping[str, float]) -> Run:
        kept = {job.name: weights[job.name] for job, _ in self.jobs if weights[job.name]}
        key = digest(self.key, list(kept.items()))
        if key not in self.known:
            pairs = [(job, head) for job, head in self.jobs if job.name in kept]
            after = self.record if self.truth else lambda theta, learners: None
            theta, learners = share(self.trainer, pairs, self.epochs, weighted(kept), key, self.progress, self.slots, after)
            truth = {m.job.name: m.held["truth"] for m in learners} if self.truth else {}
            self.known[key] = Run((theta, learners), self.scores(theta, learners), truth)
        return self.known[key]

    def features(self, task: str) -> tuple[Tensor, Tensor]:
        job = next(job for job, _ in self.jobs if job.name == task)
        part = job.parts["train"]
        if not job.kind.labels and not job.kind.mean:
            raise InputError(f"{task} is of kind {job.task.kind}, which has no classes and no numbers to compare tasks by")
        return self.vectors(part), torch.stack([target(y, len(job.kind.labels)) for y in part.y])

    def vectors(self, part: Part) -> Tensor:
        f = self.trainer.features
        return torch.stack([f.vectors[row][:, : f.backbone.d].mean(0) for row in part.units])

    def scores(self, theta: dict[str, Tensor], learners: Sequence[Learner]) -> dict[str, float]:
        """On validation rows (without any, on training rows); a task that was left out answers with the head it came with."""
        trained, out = {m.job.name: m for m in learners}, {}
        for job, head in self.jobs:
            learner = trained.get(job.name) or Learner(job, learners[0].theta | {f"head.{n}": t for n, t in head.items()}, 1)
            view, part = self.view(theta, learner), job.parts["valid"] if len(job.parts["valid"]) else job.parts["train"]
            index = index_of(job, near(job, part), self.trainer.features, view) if job.documents else None
            found = answers(job, part, self.trainer.features, view, learner.head, {}, index)
            out[job.name] = measure(job, part, found) or 0.0
        return out

    def record(self, theta: dict[str, Tensor], learners: list[Learner]) -> None:
        for learner in learners:
            job, part = learner.job, learner.job.parts["train"]
            out, counts = outputs(job, part, self.trainer.features, self.view(theta, learner), learner.head)
            row = torch.exp(-job.kind.loss(out, part.y, counts))[None]
            learner.held["truth"] = torch.cat([learner.held.get("truth", row[:0]), row])

    def view(self, theta: dict[str, Tensor], learner: Learner) -> Slot:
        self.trainer.place([learner], leaves=False)
        expand(self.trainer, theta, 1)
        return Slot(self.trainer.features, self.trainer.adapted, learner.job.kind.words, together(self.slots))


def weighted(weights: Mapping[str, float]) -> Balancer:
    """The gradient of ``sum_t weights[t] L_t``, by the number of tasks in the step."""

    def balance(state: Any, point: Point) -> tuple[Tensor, Any]:
        w = torch.tensor([weights[name] for name in point.names])
        return w @ gradients(point) / len(w), (state or 0) + 1

    return balance


def target(y: Tensor, classes: int) -> Tensor:
    """[outputs]: one-hot of a class, the mean of those of words, or numbers as they are."""
    return y.reshape(-1) if y.is_floating_point() else one_hot(y.reshape(-1), classes).float().mean(0)
