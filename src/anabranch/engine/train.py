"""The delta stage: every task trains its own slot and head; the rows of many tasks share each forward pass.

A task's order of rows, learning rates and optimiser state are its own, so its result does not depend on its companions.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.delta import Delta
from anabranch.core.route import Route
from anabranch.engine.cache import digest, recall, write_tensors
from anabranch.engine.features import Features
from anabranch.engine.job import Head, Job, apply, joined, leaves_of
from anabranch.engine.linear import View, answers, frozen, index_of, inputs, measure, near, outputs, padded, rounded
from anabranch.engine.passes import Routes, Slot, encode, learned, said, seeded
from anabranch.engine.seen import seen

ROWS, WARM = 32, 0.1  # rows of one task in a step; share of steps to full rate
TOKENS = 6144  # of all rows in a step, at most about
HEAD_LR = 2e-3


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
    start: dict[str, Tensor] = field(default_factory=dict)  # the head that it began with

    @property
    def head(self) -> Head:
        return self.head_of(self.theta)

    def head_of(self, numbers: Mapping[str, Tensor]) -> Head:
        """The head among a state's numbers."""
        return {n[5:]: t for n, t in numbers.items() if n.startswith("head.")}

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
        return min(1.0, (self.step + 1) / max(1.0, WARM * self.total)) * max(0.0, 1 - self.step / self.total)

    @property
    def total(self) -> int:
        """Optimiser steps in all."""
        return self.planned or self.steps * self.epochs

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
    """Trains slots of ``banks`` (their delta's settings; the slots themselves live with the learners until done).

    What no learner holds comes from ``library``, rows [slots, n] by table, and stays as it is. ``routes`` says which slots
    the rows of learner j (from 1) take, ``learning`` which tables learn, ``begin`` with which numbers a task's slot begins.
    ``patience``: share of a task's passes after which it ends when none of them lowered its validation loss; 0: never.
    ``tokens``: of all rows of a step, about.
    """

    def __init__(
        self, features: Features, banks: Sequence[Bank], rates: Sequence[float], folder: Path, seed: int, patience: float = 0.0,
        tokens: int = TOKENS, routes: Routes = Route.to, library: Mapping[str, Tensor] | None = None,
        learning: Set[str] = frozenset(("own", "keys", "gate", "head")), begin: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        self.features, self.banks, self.rates = features, list(banks), list(rates)
        self.folder, self.seed, self.patience, self.tokens = folder, seed, patience, tokens
        self.routes, self.library, self.learning, self.begin = routes, dict(library or {}), learning, begin or {}
        self.adapted = Adapted(features.backbone.f, self.banks, features.tail)
        self.penal = {i: bank for i, bank in enumerate(self.banks) if type(bank.delta).penalty is not Delta.penalty}
        self.common = False  # whether all rows of a step train the same slots

    def learner(self, job: Job, head: Head, epochs: int, key: str) -> Learner:
        """A fresh learner from the probe's head, or where its last checkpoint left it."""
        theta: dict[str, Tensor] = {}
        for i, bank in enumerate(self.banks):
            rng = seeded(self.seed, job.name, "init", i)
            slot = {} if f"{i}.own" in self.library else bank.flat(bank.fresh(rng, seen(self.features, bank, job)))
            gate = {"gate": bank.tables["gate"].row(bank.gates(rng))} if bank.tables["gate"].n else {}
            theta |= {f"{i}.{table}": row for table, row in (slot | gate).items()}
        theta |= dict(self.begin.get(job.name, {})) | {f"head.{n}": t.clone() for n, t in head.items()}
        learner = Learner(job, theta, epochs, best={n: t.clone() for n, t in theta.items()}, start=dict(head))
        if saved := recall(self.file(job, key)):
            learner.restore(*saved)
        return learner

    def file(self, job: Job, key: str) -> Path:
        return self.folder / f"{digest(job.name)}-{key}.safetensors"

    def learns(self, name: str) -> bool:
        """Whether a table's numbers learn: own ones, and those of a trained gate."""
        i, _, table = name.partition(".")
        return table in self.learning and (table == "own" or self.banks[int(i)].gate.trained)

    def place(self, learners: Sequence[Learner], leaves: bool) -> dict[str, Tensor]:
        """Puts the learners' rows in front of the banks, row 0 zero; returns the leaves."""
        out: dict[str, Tensor] = {}
        for i, bank in enumerate(self.banks):
            for table in (*bank.slot_tables, "gate"):
                name = f"{i}.{table}"
                if name in self.library:
                    leaf = torch.cat([torch.zeros_like(self.library[name][:1]), self.library[name]])
                elif name in learners[0].theta:
                    rows = [learner.theta[name] for learner in learners]
                    leaf = torch.stack([torch.zeros_like(rows[0]), *rows])
                    if leaves and leaf.numel() and self.learns(name):
                        out[name] = leaf.requires_grad_()
                else:
                    continue
                self.adapted.sources[i][table] = leaf
        return out

    def step(self, work: Sequence[tuple[Learner, list[int]]]) -> None:
        """One optimiser step of several learners, each on its own rows."""
        learners, t = [learner for learner, _ in work], len(work)
        anchored = any(bank.delta.anchor for bank in self.banks)
        leaves = self.place(learners * (1 + anchored), leaves=True)
        heads = [leaves_of(learner.head) for learner in learners]
        losses = self.losses(work, heads, range(1, t + 1))
        if anchored:  # in rows of their own, so that the two gradients stay apart
            fixed = [{n: t.detach() for n, t in head.items()} for head in heads]
            losses += self.losses(work, fixed, range(t + 1, 2 * t + 1), anchor=True)
        torch.stack(losses).sum().backward()
        for j, (learner, head) in enumerate(zip(learners, heads, strict=True)):
            learner.loss += float(losses[j].detach())
            grads = {n: leaf.grad[j + 1] for n, leaf in leaves.items() if leaf.grad is not None}
            more = {n: leaf.grad[j + 1 + t] for n, leaf in leaves.items() if leaf.grad is not None} if anchored else None
            still = self.refine(learner, grads, more)
            if "head" in self.learning:
                grads |= {f"head.{n}": t.grad for n, t in head.items() if t.grad is not None}
            self.update(learner, grads, still)

    def refine(self, learner: Learner, grads: dict[str, Tensor], anchor: Mapping[str, Tensor] | None = None) -> set[str]:
        """Lets the deltas that do change numbers and gradients after a backward; names whose zero gradients mean: stay."""
        still, done = set(), (learner.step + 1) / learner.total
        for i, bank in enumerate(self.banks):
            name = f"{i}.own"
            if type(bank.delta).refine is Delta.refine or name not in grads:
                continue
            whole = bank.tree({t: learner.theta[f"{i}.{t}"].flatten() for t in bank.slot_tables})
            keys = {s: {n: t for n, t in p.items() if n.startswith("key.")} for s, p in whole.items()}
            own = {s: {n: t for n, t in p.items() if not n.startswith("key.")} for s, p in whole.items()}
            pull = None if anchor is None else bank.tables["own"].split(anchor[name])
            own, grad = bank.delta.refine(own, bank.tables["own"].split(grads[name].flatten()), done, pull)
            flat = bank.flat({s: p | keys.get(s, {}) for s, p in own.items()})
            learner.theta |= {f"{i}.{t}": row.view_as(learner.theta[f"{i}.{t}"]) for t, row in flat.items()}
            grads[name] = bank.tables["own"].row(grad).view_as(grads[name])
            still.add(name)
        return still

    def penalty(self, owners: list[int]) -> dict[int, Tensor]:
        """What the deltas add to the loss for one pass, by owner and times its rows; a common slot sees the rows of all."""
        out: dict[int, Tensor] = {}
        groups = [sorted(set(owners))] if self.common else [[o] for o in sorted(set(owners))]
        for group in groups:
            rows = torch.tensor([r for r, o in enumerate(owners) if o in group])
            who, slots = torch.tensor(owners)[rows], self.routes(group).ids.flatten()
            for i, bank in self.penal.items():
                shared = bank.tables["shared"].split(bank.tables["shared"].data[1]).get("", {})
                parts = [bank.tables[t].split(self.adapted.sources[i][t][slots]) for t in bank.slot_tables if t != "keys"]
                for site in bank.sites:
                    at = (self.adapted.seen or {})[site.key]
                    at = at._replace(x=at.x[rows].float(), y=at.y[rows].float(), mask=at.mask[rows])
                    own = {n: t for part in parts for n, t in part.get(site.key, {}).items()}
                    p = {n: t.mean(0) if t.is_floating_point() else t[0] for n, t in own.items()}  # copies of the same numbers
                    for o in group:
                        out[o] = out.get(o, torch.zeros(())) + bank.delta.penalty(p | shared, at, who) * owners.count(o)
        return out

    def losses(
        self, work: Sequence[tuple[Learner, list[int]]], heads: Sequence[Head], slots: Sequence[int], anchor: bool = False
    ) -> list[Tensor]:
        """The mean loss of each learner's rows; ``anchor``: how far its answers are from those of its start on f alone."""
        out: dict[int, Tensor] = {}
        more: dict[int, Tensor] = {}
        d = self.features.backbone.d

        def watch(owners: list[int]) -> None:
            for o, value in self.penalty(owners).items():
                more[o] = more.get(o, torch.zeros(())) + value

        self.adapted.seen = {} if self.penal and not anchor else None
        for words in (False, True):
            mine = [j for j, (learner, _) in enumerate(work) if learner.job.kind.words is words and not learner.job.kind.speaks]
            rows = {j: [learned(work[j][0].job, work[j][0].job.parts["train"])[r] for r in work[j][1]] for j in mine}
            flat = [(u, slots[j]) for j in mine for row in rows[j] for u in row]
            if not flat:
                continue
            units, owners = zip(*flat, strict=True)
            watched = watch if self.adapted.seen is not None else None
            z = iter(encode(self.features, self.adapted, units, owners, words, self.routes, watched))
            for j in mine:
                job = work[j][0].job
                counts = job.counts(self.features, rows[j])
                x = joined(job.kind, torch.cat([next(z) for row in rows[j] for _ in row]), [len(r) for r in rows[j]], d)
                y = job.parts["train"].y
                y = y[work[j][1]] if isinstance(y, Tensor) else [y[r] for r in work[j][1]]
                if anchor:
                    was = apply(work[j][0].start, inputs(job, rows[j], frozen(self.features, job), counts, d))
                    out[j] = job.kind.drift(apply(heads[j], x), was).mean()
                else:
                    out[j] = self.loss(job, heads[j], x, y, counts) + more.get(slots[j], 0.0) / sum(map(len, rows[j]))
        self.adapted.seen = None
        for j in range(len(work)):
            if j not in out:
                asked = [work[j][0].job.parts["train"].units[r][0] for r in work[j][1]]
                out[j] = said(self.features, self.adapted, work[j][0].job, asked, slots[j], self.routes)
        return [out[j] for j in range(len(work))]

    def loss(self, job: Job, head: Head, x: Tensor, y: Any, counts: Sequence[int]) -> Tensor:
        """The mean loss of one task's rows, x their inputs of the head."""
        return job.kind.loss(apply(head, x), y, counts).mean()

    def update(self, learner: Learner, grads: dict[str, Tensor], still: Set[str] = frozenset()) -> None:
        """Clipped Adam (Kingma and Ba 2015, arXiv:1412.6980) on one learner's numbers; in ``still``, a zero gradient stays."""
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
                move = lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
                learner.theta[n] = learner.theta[n] - (torch.where(g == 0, 0, move) if n in still else move)

    def view(self, learner: Learner) -> View:
        """Features of units under a learner's slot, until the next step or view."""
        self.place([learner], leaves=False)
        return Slot(self.features, self.adapted, learner.job.kind.words, self.routes)

    @torch.no_grad()
    def close(self, learner: Learner, key: str) -> None:
        """After an epoch: validation score, best state, curve, checkpoint. Training that has diverged ends at its best.

        The rate falls to zero, so the last state counts, unless an earlier one has a validation loss that is lower by more
        than one standard error of the paired difference (without a head: a higher score), that of the start, which is the
        probe's, included. With patience a state between the first and the last counts only if its loss is the lowest so far.
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
                begun = self.begun(learner) if self.patience and not learner.held else losses
                worse = losses - learner.held.get("losses", begun)
                slack = worse.std(correction=0) / len(worse) ** 0.5
                early = self.patience and 1 < learner.epoch < learner.epochs
                better = not bool(worse.mean() > (0 if early else slack)) or self.settling(learner)
                entry |= {"valid_loss": float(losses.mean())}
                learner.held = {"losses": losses} if better else learner.held
            else:
                index = index_of(job, near(job, valid), self.features, view) if job.documents else None
                found = answers(job, valid, self.features, view, head, {}, index)
            score = measure(job, valid, (padded(job, valid, found[0]), found[1])) or 0.0
            better = better if head else score >= learner.best_score
            entry |= {"valid": score, "kept": better}
        if not all(math.isfinite(v) for v in entry.values()):
            entry = {"epoch": learner.epoch}
        learner.curve.append(entry)
        if "loss" in entry and better:
            learner.best, learner.best_score = {n: t.clone() for n, t in learner.theta.items()}, score
        write_tensors(self.file(job, key), learner.state(), learner.note())

    def begun(self, learner: Learner) -> Tensor:
        """Validation losses of the head that the learner began with, on f alone."""
        job = learner.job
        out, counts = outputs(job, job.parts["valid"], self.features, frozen(self.features, job), learner.start)
        return job.kind.loss(out, job.parts["valid"].y, counts)

    def settling(self, learner: Learner) -> bool:
        """Whether a delta of several phases is still in one before whose end no state is better than a later one."""
        return learner.step < learner.total * max((bank.delta.settles for bank in self.banks), default=0.0)

    def done(self, learner: Learner) -> bool:
        kept = [i for i, e in enumerate(learner.curve) if e.get("kept", True)]
        stale = len(learner.curve) - 1 - max(kept, default=-1)
        diverged = bool(learner.curve) and "loss" not in learner.curve[-1]
        out_of_patience = bool(self.patience) and stale >= max(1, round(self.patience * learner.epochs))
        return learner.epoch >= learner.epochs or out_of_patience or diverged

    def run(
        self, jobs: Sequence[tuple[Job, Head, int, str]], progress: Callable[[Learner], None] = lambda _: None
    ) -> Iterator[Learner]:
        """Trains (job, head, epochs, key) and yields learners as they finish; the place of one goes to the next in line."""
        waiting = jobs if isinstance(jobs, deque) else deque(jobs)  # a queue may have other trainers at it
        active: list[tuple[Learner, str, list[list[int]]]] = []
        while waiting or active:
            work: list[tuple[Learner, list[int]]] = []
            tokens, turn = 0, 0
            while tokens < self.tokens and (turn < len(active) or waiting):
                if turn == len(active):
                    try:
                        job, head, epochs, key = waiting.popleft()
                    except IndexError:
                        break
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
