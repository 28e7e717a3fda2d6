"""What the claims of balancers share: noisy labels, tasks over the same texts, losses of other scales, the time of a step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from anabranch.core.balance import Point
from anabranch.engine.balanced import way_of
from anabranch.engine.passes import seeded
from anabranch.engine.recipe import weighted
from anabranch.engine.share import balancer, start, step, together
from anabranch.engine.train import ROWS, Learner
from anabranch.task.data import Task


def noisy(lab: Any, task: Task, share: float = 0.3) -> Task:
    """The task with another class than its own at this share of its training rows."""
    rng, n, classes = seeded(lab.seed, task.name, "noise"), len(task.train), len(task.labels or ())
    label = list(task.train.label)
    for i in torch.randperm(n, generator=rng)[: round(share * n)].tolist():
        label[i] = (label[i] + int(torch.randint(1, classes, (), generator=rng))) % classes
    return replace(task, train=replace(task.train, label=label))


def alike(lab: Any, names: Sequence[str], rows: int, test: int = 200) -> list[Task]:
    """Tasks that ask about the same texts, with the same so many of these in training (a tenth of them validates)."""
    whole = lab.tasks(names, rows=10**6, test=test)
    where = [{text: i for i, text in enumerate(task.train.text)} for task in whole]
    texts = [text for text in dict.fromkeys(whole[0].train.text) if all(text in other for other in where)]
    order = torch.randperm(len(texts), generator=seeded(lab.seed, names[0], "alike")).tolist()[:rows]
    cut = max(1, len(order) // 10)
    out = []
    for task, there in zip(whole, where, strict=True):
        ids = [there[texts[i]] for i in order]
        out.append(replace(task, train=task.train.take(ids[cut:]), valid=task.train.take(ids[:cut])))
    return out


class Weighted:
    """Tasks' gradients by constant weights."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)

    def __call__(self, state: Any, point: Point) -> tuple[Tensor | None, Any]:
        return weighted(self.weights)(state, point)

    def __repr__(self) -> str:
        return f"weighted {self.weights}"


class Scaled:
    """A balancer that sees each task's loss times a number of its own."""

    def __init__(self, spec: Any, by: Mapping[str, float]) -> None:
        self.spec, self.by = spec, dict(by)

    def __call__(self, state: Any, point: Point) -> tuple[Tensor | None, Any]:
        by = torch.tensor([self.by[name] for name in point.names])
        losses, grads = (lambda p: by * point.losses(p)), (lambda p: by[:, None] * point.grads(p))
        return balancer(self.spec)(state, point._replace(losses=losses, grads=grads))

    def __repr__(self) -> str:
        return f"{self.spec} of losses times {self.by}"


def seconds(suite: Any, delta: Any, ways: Mapping[str, Any], steps: int = 3) -> dict[str, float]:
    """Processor seconds of one step (a batch of every task): the median of ``steps``, the ways in turn."""
    runs, took = {}, {name: list[float]() for name in ways}
    for name, spec in ways.items():
        banks, rates = suite.banks(delta)
        trainer, balance = suite.trainer(banks, rates), balancer(spec)
        trainer.common, trainer.routes = True, together(1)
        way = way_of(trainer, [(job, suite.heads[n]) for n, job in suite.jobs.items()], balance)
        learners = [Learner(job, {f"head.{n}": t for n, t in head.items()}, 1) for job, head in way.pairs]
        common = Learner(way.pairs[0][0], start(trainer), 1)
        common.planned = 10**6
        rows = list(range(min(ROWS, *(len(job.parts["train"]) for job, _ in way.pairs))))
        runs[name] = (partial(way.here, trainer, common, [(learner, rows) for learner in learners]), balance)
    states: dict[str, Any] = dict.fromkeys(ways)
    for _ in range(steps + 1):
        for name, (here, balance) in runs.items():
            begun = time.process_time()
            states[name] = step(here(), balance, states[name])
            took[name].append(time.process_time() - begun)
    return {name: median(each[1:]) for name, each in took.items()}


def worst(scores: Mapping[str, float]) -> dict[str, float]:
    """The lowest of the tasks' scores, as a way of one case."""
    return {"worst task": min(scores.values())}
