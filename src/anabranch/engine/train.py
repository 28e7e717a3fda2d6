"""The delta stage: every task trains its own slot and head; the rows of many tasks share each forward pass.

A task's order of rows, learning rates and optimiser state are its own, so its result does not depend on its companions.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.route import Route
from anabranch.engine.cache import digest, recall, write_tensors
from anabranch.engine.features import Features
from anabranch.engine.job import Head, Job, Part, apply, joined, leaves_of
from anabranch.engine.linear import View, answers, index_of, measure, near, outputs, rounded, speak

ROWS, TOKENS, WARM = 32, 6144, 0.1  # rows of one task in a step; tokens of all in a step; share of steps to full rate
HEAD_LR = 2e-3


def seeded(*parts: Any) -> Generator:
    return Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def encode(features: Features, adapted: Adapted, units: Sequence[int], slots: Sequence[int], words: bool) -> list[Tensor]:
    """Features of units, each under its slot (numbers of rows of ``adapted.sources``): one [1, d] or [words, d] per unit.

    One forward pass per length, in which the rows of a slot stand together. Where a pass is full, it is cut between slots: how
    the rows of one are divided, and so the bits of its gradient, must not depend on the others.
    """
    out: list[Tensor] = [torch.empty(0)] * len(units)
    parts: dict[int, list[list[int]]] = {}  # length -> rows of each pass
    runs: dict[tuple[int, int], list[int]] = {}  # length, slot -> rows
    for i in sorted(range(len(units)), key=lambda i: (features.length(units[i]), slots[i])):
        runs.setdefault((features.length(units[i]), slots[i]), []).append(i)
    for (length, _), run in runs.items():
        most, passes = max(1, TOKENS // length), parts.setdefault(length, [[]])
        for piece in (run[at : at + most] for at in range(0, len(run), most)):
            if len(passes[-1]) + len(piece) > most:
                passes.append([])
            passes[-1] += piece
    for passes in parts.values():
        for part in passes:
            route = Route.to([slots[i] for i in part])
            rows = features.forward(adapted, [units[i] for i in part], route, words)
            for i, row in zip(part, rows, strict=True):
                out[i] = row
    return out


def said(features: Features, adapted: Adapted, job: Job, units: Sequence[int], slot: int) -> Tensor:
    """The mean loss of the answers that units of kind generate hold."""
    losses = []
    for length in sorted({features.length(u) for u in units}):
        batch = [u for u in units if features.length(u) == length]
        inputs, hidden = features.entry(batch)
        out = adapted(inputs | {"use_cache": False}, Route.to([slot] * len(batch)), hidden)
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
    """A :class:`View` through slot 1 of ``adapted.sources``."""

    features: Features
    adapted: Adapted
    words: bool

    def __call__(self, units: Sequence[int]) -> Tensor:
        return torch.cat(encode(self.features, self.adapted, units, [1] * len(units), self.words))

    def speak(self, units: Sequence[int]) -> list[str]:
        return speak(self.features, self.adapted, units, 1)


@dataclass
class Learner:
    """One task in training: all of its numbers, by table of each bank and by tensor of its head."""

    job: Job
    theta: dict[str, Tensor]
    epochs: int
    m: dict[str, Tensor] = field(default_factory=dict)
    v: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_score: float = -math.inf
    held: dict[str, Tensor] = field(default_factory=dict)  # losses of the validation rows at the best state
    curve: list[dict[str, float]] = field(default_factory=list)
    loss: float = 0.0
    planned: int = 0  # optimiser steps in all, where not its own epochs decide

    @property
    def head(self) -> Head:
        return {n[5:]: t for n, t in self.theta.items() if n.startswith("head.")}

    @property
    def steps(self) -> int:
        """In one epoch."""
        return -(-len(self.job.parts["train"]) // ROWS)

    def batches(self, features: Features, seed: int) -> list[list[int]]:
        """Rows of each step of this epoch: shuffled, then rows of near length together (in pools of eight steps)."""
        rng = seeded(seed, self.job.name, self.epoch)
        units = learned(self.job, self.job.parts["train"])
        order = torch.randperm(len(units), generator=rng).tolist()
        out: list[list[int]] = []
        for at in range(0, len(order), 8 * ROWS):
            pool = sorted(order[at : at + 8 * ROWS], key=lambda r: max(features.length(u) for u in units[r]))
            out += [pool[i : i + ROWS] for i in range(0, len(pool), ROWS)]
        return [out[i] for i in torch.randperm(len(out), generator=rng).tolist()]

    def rate(self) -> float:
        """Share of the full learning rate at this step: linear up, linear down."""
        total = self.planned or self.steps * self.epochs
        return min(1.0, (self.step + 1) / max(1.0, WARM * total)) * max(0.0, 1 - self.step / total)

    def state(self) -> dict[str, Tensor]:
        named = {"theta": self.theta, "m": self.m, "v": self.v, "best": self.best, "held": self.held}
        return {f"{kind}/{n}": t for kind, tensors in named.items() for n, t in tensors.items()}

    def note(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.epoch, "best_score": self.best_score, "curve": self.curve}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        for name, t in tensors.items():
            kind, _, key = name.partition("/")
            getattr(self, kind)[key] = t
        self.step, self.epoch, self.curve = note["step"], note["epoch"], note["curve"]
        self.best_score = note["best_score"]


class Trainer:
    """Trains slots of ``banks`` (their delta's settings; the slots themselves live with the learners until done)."""

    def __init__(
        self, features: Features, banks: Sequence[Bank], rates: Sequence[float], folder: Path, seed: int, patience: int = 3
    ) -> None:
        self.features, self.banks, self.rates = features, list(banks), list(rates)
        self.folder, self.seed, self.patience = folder, seed, patience
        self.adapted = Adapted(features.backbone.f, self.banks, features.tail)

    def learner(self, job: Job, head: Head, epochs: int, key: str) -> Learner:
        """A fresh learner from the probe's head, or where its last checkpoint left it."""
        theta: dict[str, Tensor] = {}
        for i, bank in enumerate(self.banks):
            rng = seeded(self.seed, job.name, "init", i)
            theta |= {f"{i}.{table}": row for table, row in bank.flat(bank.fresh(rng)).items()}
        theta |= {f"head.{n}": t.clone() for n, t in head.items()}
        learner = Learner(job, theta, epochs, best={n: t.clone() for n, t in theta.items()})
        if saved := recall(self.file(job, key)):
            learner.restore(*saved)
        return learner

    def file(self, job: Job, key: str) -> Path:
        return self.folder / f"{digest(job.name)}-{key}.safetensors"

    def place(self, learners: Sequence[Learner], leaves: bool) -> dict[str, Tensor]:
        """Puts the learners' rows in front of the banks, row 0 zero; returns the leaves."""
        out: dict[str, Tensor] = {}
        for i, bank in enumerate(self.banks):
            for table in bank.slot_tables:
                name = f"{i}.{table}"
                rows = [learner.theta[name] for learner in learners]
                leaf = torch.stack([torch.zeros_like(rows[0]), *rows])
                if leaves and leaf.numel() and not table.startswith("fixed"):
                    out[name] = leaf.requires_grad_()
                self.adapted.sources[i][table] = leaf
        return out

    def step(self, work: Sequence[tuple[Learner, list[int]]]) -> None:
        """One optimiser step of several learners, each on its own rows."""
        learners = [learner for learner, _ in work]
        leaves = self.place(learners, leaves=True)
        heads = [leaves_of(learner.head) for learner in learners]
        losses = self.losses(work, heads, range(1, len(work) + 1))
        torch.stack([loss for loss in losses]).sum().backward()
        for j, (learner, head) in enumerate(zip(learners, heads, strict=True)):
            learner.loss += float(losses[j].detach())
            grads = {n: leaf.grad[j + 1] for n, leaf in leaves.items() if leaf.grad is not None}
            grads |= {f"head.{n}": t.grad for n, t in head.items() if t.grad is not None}
            self.update(learner, grads)

    def losses(self, work: Sequence[tuple[Learner, list[int]]], heads: Sequence[Head], slots: Sequence[int]) -> list[Tensor]:
        """The mean loss of each learner's rows."""
        out: dict[int, Tensor] = {}
        d = self.features.backbone.d
        for words in (False, True):
            mine = [j for j, (learner, _) in enumerate(work) if learner.job.kind.words is words and not learner.job.kind.speaks]
            rows = {j: [learned(work[j][0].job, work[j][0].job.parts["train"])[r] for r in work[j][1]] for j in mine}
            flat = [(u, slots[j]) for j in mine for row in rows[j] for u in row]
            if not flat:
                continue
            units, owners = zip(*flat, strict=True)
            z = iter(encode(self.features, self.adapted, units, owners, words))
            for j in mine:
                job = work[j][0].job
                counts = job.counts(self.features, rows[j])
                x = joined(job.kind, torch.cat([next(z) for row in rows[j] for _ in row]), [len(r) for r in rows[j]], d)
                y = job.parts["train"].y
                y = y[work[j][1]] if isinstance(y, Tensor) else [y[r] for r in work[j][1]]
                out[j] = job.kind.loss(apply(heads[j], x), y, counts).mean()
        for j in range(len(work)):
            if j not in out:
                asked = [work[j][0].job.parts["train"].units[r][0] for r in work[j][1]]
                out[j] = said(self.features, self.adapted, work[j][0].job, asked, slots[j])
        return [out[j] for j in range(len(work))]

    def update(self, learner: Learner, grads: dict[str, Tensor]) -> None:
        """Clipped Adam (Kingma and Ba 2015, arXiv:1412.6980) on one learner's numbers."""
        rate = learner.rate()
        learner.step += 1
        t = learner.step
        for bank_or_head in {n.partition(".")[0] for n in grads}:
            names = [n for n in grads if n.partition(".")[0] == bank_or_head]
            norm = torch.stack([grads[n].norm() for n in names]).norm()
            lr = rate * (HEAD_LR if bank_or_head == "head" else self.rates[int(bank_or_head)])
            for n in names:
                g = grads[n] / norm.clamp(min=1.0)
                m = learner.m[n] = learner.m.get(n, torch.zeros_like(g)).lerp(g, 0.1)
                v = learner.v[n] = learner.v.get(n, torch.zeros_like(g)).lerp(g * g, 0.001)
                learner.theta[n] = learner.theta[n] - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    def view(self, learner: Learner) -> View:
        """Features of units under a learner's slot, until the next step or view."""
        self.place([learner], leaves=False)
        return Slot(self.features, self.adapted, learner.job.kind.words)

    @torch.no_grad()
    def close(self, learner: Learner, key: str) -> None:
        """After an epoch: validation score, best state, curve, checkpoint. Training that has diverged ends at its best.

        The rate falls to zero, so the last state is the best, unless an earlier one has a validation loss that is lower by
        more than one standard error of the paired difference (without a head: a higher score).
        """
        learner.epoch += 1
        job, valid = learner.job, learner.job.parts["valid"]
        head, view = rounded(learner.head), self.view(learner)
        entry: dict[str, float] = {"epoch": learner.epoch, "loss": learner.loss / learner.steps}
        learner.loss = 0.0
        score, better = 0.0, True
        if len(valid):
            if head:
                out, counts = outputs(job, valid, self.features, view, head)
                found, losses = job.kind.answer(out.nan_to_num(), counts, {}), job.kind.loss(out, valid.y, counts)
                worse = losses - learner.held.get("losses", losses)
                better = not bool(worse.mean() > worse.std(correction=0) / len(worse) ** 0.5)
                entry |= {"valid_loss": float(losses.mean())}
                learner.held = {"losses": losses} if better else learner.held
            else:
                index = index_of(job, near(job, valid), self.features, view) if job.documents else None
                found = answers(job, valid, self.features, view, head, {}, index)
            score = measure(job, valid, _whole(job, found, valid)) or 0.0
            better = better if head else score >= learner.best_score
            entry |= {"valid": score}
        if not all(math.isfinite(v) for v in entry.values()):
            entry = {"epoch": learner.epoch}
        learner.curve.append(entry)
        if "loss" in entry and better:
            learner.best, learner.best_score = {n: t.clone() for n, t in learner.theta.items()}, score
        write_tensors(self.file(job, key), learner.state(), learner.note())

    def done(self, learner: Learner) -> bool:
        scores = [e["valid"] for e in learner.curve if "valid" in e]  # without validation rows it trains to the end
        stale = len(scores) - 1 - max(range(len(scores)), key=scores.__getitem__) if scores else 0
        diverged = bool(learner.curve) and "loss" not in learner.curve[-1]
        return learner.epoch >= learner.epochs or stale >= self.patience or diverged

    def run(
        self, jobs: Sequence[tuple[Job, Head, int, str]], progress: Callable[[Learner], None] = lambda _: None
    ) -> Iterator[Learner]:
        """Trains (job, head, epochs, key) and yields learners as they finish; the place of one goes to the next in line."""
        waiting = [*reversed(jobs)]
        active: list[tuple[Learner, str, list[list[int]]]] = []
        while waiting or active:
            work: list[tuple[Learner, list[int]]] = []
            tokens, turn = 0, 0
            while tokens < TOKENS and (turn < len(active) or waiting):
                if turn == len(active):
                    job, head, epochs, key = waiting.pop()
                    learner = self.learner(job, head, epochs, key)
                    if self.done(learner):
                        yield learner
                        continue
                    active.append((learner, key, learner.batches(self.features, self.seed)))
                learner, _, batches = active[turn]
                units = learned(learner.job, learner.job.parts["train"])
                work.append((learner, batches.pop()))
                tokens += sum(self.features.length(u) for r in work[-1][1] for u in units[r])
                turn += 1
            if work:
                self.step(work)
            active = active[turn:] + active[:turn]  # those that waited go first
            for entry in [e for e in active if not e[2]]:
                learner, key, batches = entry
                self.close(learner, key)
                progress(learner)
                if self.done(learner):
                    active.remove(entry)
                    yield learner
                else:
                    batches += learner.batches(self.features, self.seed)


def _whole(job: Job, found: tuple[list[Any], list[Any]], part: Part) -> tuple[list[Any], list[Any]]:
    if not job.kind.words:
        return found
    common = int(job.kind.constant(job.parts["train"].y).argmax())
    return [p + [common] * (len(t) - len(p)) for p, t in zip(found[0], part.labels, strict=True)], found[1]
