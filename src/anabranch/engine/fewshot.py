"""Few-shot training of a task's slot: texts of one class are drawn together, and the names of the labels are among them.

    loss = mean over pairs of one class of (1 - cos)^2  +  mean over pairs of two classes of cos^2,    cos of f's pooled ends
    head = softmax(((z - mean) scale) (P + W)^T + b),  P [classes, d] = 3 x unit directions of the names, W from 0 under L2

The pairs are those of SetFit (Tunstall et al. 2022, arXiv:2209.11055), all of a batch at once; a name ("this text is about
negative") counts as one more text of its class, so that a task begins with what f knows of its labels. A validation split
of a few rows decides nothing, so the choice between slot and probe is made on halves: each half is answered by what learned
from the other, and the slot is taken unless the probe is better by two standard errors: half as many rows speak too much
for the probe. What is kept learns from all rows.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, get_num_threads
from torch.nn.functional import normalize

from anabranch.engine import linear
from anabranch.engine.choose import Rung, better, climb, tested
from anabranch.engine.job import Head, Job, Part, fresh, spelled
from anabranch.engine.linear import View, frozen, inputs, outputs, solve
from anabranch.engine.merging import taken
from anabranch.engine.passes import Slot
from anabranch.engine.result import served
from anabranch.engine.run import Run
from anabranch.engine.train import ROWS, TOKENS, Learner, Trainer
from anabranch.engine.workers import drained, each

SHOTS, MOST = 16, 256  # labelled rows a class, on average, and in all, up to which a task is trained in this way
ERRORS = 2.0  # standard errors by which the probe must be better to be taken
STEPS, PASSES = 30, 4  # optimiser steps at least, and passes over the rows
RATE = 0.6  # of the delta's learning rate
SHARPNESS, STRENGTH = 3.0, 1.0  # of the names' directions; inverse strength of the penalty
NAME = "this text is about {}"


class Contrast(Trainer):
    """Slots that learn from pairs; heads stay."""

    def loss(self, job: Job, head: Head, x: Tensor, y: Any, counts: Sequence[int]) -> Tensor:
        u = normalize(x[:, : self.features.backbone.d], dim=1)
        same = (y[:, None] == y).triu(1)
        other = (y[:, None] != y).triu(1)
        cos = u @ u.mT
        near = torch.where(same, (1 - cos).square(), 0.0).sum() / same.sum().clamp(min=1)
        return near + torch.where(other, cos.square(), 0.0).sum() / other.sum().clamp(min=1)


def few(job: Job) -> bool:
    """Whether a task has few labelled rows, but two of each class."""
    labels = [*job.parts["train"].labels, *job.parts["valid"].labels]
    counts = Counter(map(str, labels))
    enough = len(counts) == len(job.kind.labels) > 1 and min(counts.values()) > 1
    return job.task.kind == "classify" and enough and len(labels) <= min(MOST, SHOTS * len(counts))


def names_of(run: Run, job: Job) -> list[int]:
    """Units of the labels' names; none where a name has no word in it."""
    words = spelled(job.kind.labels)
    if not all(re.search(r"[^\W\d_]{2}", word) for word in words):
        return []
    return run.features.add(run.backbone.tokens([NAME.format(word) for word in words], job.task.max_length))


def head_of(run: Run, job: Job, part: Part, view: View, names: Sequence[int]) -> Head:
    """The head of ``part``'s rows under a view, around the directions of the names, where there are any."""
    counts, d = job.counts(run.features, part.units), run.backbone.d
    x = inputs(job, part.units, view, counts, d)[:, :d]
    head, around = fresh(len(job.kind.labels), x, d), torch.zeros(len(job.kind.labels), d)
    if names:
        e = (view(names)[:, :d] - head["mean"]) * head["scale"]
        around = SHARPNESS * normalize(e - e.mean(0), dim=1)
    return linear.rounded(solve(job.kind, x, part.y, counts, STRENGTH, head | {"W": around}, around))


def halves(part: Part) -> list[tuple[list[int], list[int]]]:
    """Two splits of the rows (to learn from, to answer): every second row of each class."""
    seen, side = Counter[str](), list[int]()
    for label in map(str, part.labels):
        side.append(seen[label] % 2)
        seen[label] += 1
    return [([i for i, s in enumerate(side) if s != h], [i for i, s in enumerate(side) if s == h]) for h in (0, 1)]


def trained(run: Run, jobs: Sequence[Job], told: Any) -> None:
    """Gives each task a slot, a rung for it, and the choice between this rung and the probe."""
    wholes = {job.name: linear.whole(job) for job in jobs}
    names = {job.name: names_of(run, job) for job in jobs}
    run.features.run()
    todo = []
    for job in jobs:
        rows = [list(range(len(wholes[job.name]))), *(learn for learn, _ in halves(wholes[job.name]))]
        for i, learn in enumerate(rows):
            part, name = taken(wholes[job.name], learn), f"{job.name}{f', half {i}' if i else ''}"
            y = torch.cat([part.y, torch.arange(len(names[job.name]))])
            more = Part(part.units + [[u] for u in names[job.name]], y, [*part.labels, *range(len(names[job.name]))])
            one = replace(job, name=name, parts=dict(job.parts) | {"train": more, "valid": taken(part, [])})
            steps = -(-len(more) // ROWS)
            todo.append((one, run.rungs[job.name][0].head, max(PASSES, -(-STEPS // steps)), run.key(one, "few", STEPS)))

    def worker() -> Any:
        rates, folder, tokens = [RATE * r for r in run.rates], run.work / "train", TOKENS // get_num_threads()
        learning = {"own", "keys", "gate"}
        trainer = Contrast(run.features, run.banks, rates, folder, run.plan.seed, tokens=tokens, learning=learning)
        return partial(trainer.run, progress=told)

    found = {learner.job.name: learner for learner in drained(todo, worker)}
    for job, rungs in zip(jobs, each(jobs, lambda job: climbed(run, job, wholes[job.name], names[job.name], found)), strict=True):
        run.rungs[job.name], run.curves[job.name] = rungs, found[job.name].curve
        run.notes.append(f"{job.name}: {len(wholes[job.name])} labelled rows, so its slot learned from pairs of them (few-shot)")


def climbed(run: Run, job: Job, whole: Part, names: Sequence[int], found: dict[str, Learner]) -> list[Rung]:
    """The task's probe and slot, measured on halves; which of them answers is noted in ``run.few``."""
    ways: dict[str, Rung] = {}
    counts, judged = job.counts(run.features, whole.units), replace(job, parts=dict(job.parts) | {"valid": whole})
    for way in ("probe", "delta"):
        out, slots = torch.zeros(len(whole), len(job.kind.labels)), {}
        for i, (learn, answer) in enumerate([*halves(whole), (list(range(len(whole))), [])]):
            learner = found[f"{job.name}, half {i + 1}" if answer else job.name]
            view, known = (frozen(run.features, job), ()) if way == "probe" else (slot_of(run, learner), names)
            head = head_of(run, job, taken(whole, learn), view, known)
            slots = {n: t for n, t in learner.best.items() if not n.startswith("head.")}
            if answer:
                out[answer] = outputs(job, taken(whole, answer), run.features, view, head)[0]
        post = job.kind.settle(out, whole.y, counts, job.metric)
        if way == "probe":
            rung = tested(climb(way, job, run.features, view, head, post), job, run.features, view)
            rung.how = {"strength": STRENGTH, "inputs": run.backbone.d}
        else:
            mine = run.own_slots[job.name] = slots | {f"head.{n}": t for n, t in head.items()}
            rung = served(run, run.banks, way, job, [mine], mine, post=post)
        rung.found = job.kind.answer(out, counts, post)
        rung.losses = job.kind.loss(out / post.get("temperature", 1.0), whole.y, counts)
        rung.valid, ways[way] = linear.measure(judged, whole, rung.found), rung
    run.few[job.name] = ways["probe" if better(judged, ways["probe"], ways["delta"], run.plan.seed, ERRORS) else "delta"]
    return list(ways.values())


def slot_of(run: Run, learner: Learner) -> Slot:
    """The view under a learner's slot, in an :class:`Adapted` of its own."""
    trainer = Trainer(run.features, run.banks, run.rates, run.work / "train", run.plan.seed)
    view = trainer.view(learner)
    assert isinstance(view, Slot)
    return view
