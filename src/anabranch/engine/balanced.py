"""One balanced step: where it stands, for tasks with rows of their own and for tasks that share them; and which way it goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from sys import modules
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anabranch.core.balance import Balancer, Point
from anabranch.core.delta import At
from anabranch.engine.job import Head, Job, apply, joined, leaves_of
from anabranch.engine.merging import taken
from anabranch.engine.passes import encode, seeded
from anabranch.engine.train import ROWS, Learner, Trainer
from anabranch.errors import InputError, WorkError

TOGETHER = 8  # tasks in one step of the shared slot, unless all have the same rows
Pairs = Sequence[tuple[Job, Head]]


class Beside(NamedTuple):
    """What a balancer's file may say beside it."""

    term: Callable[..., dict[str, Tensor]] | None = None  # losses on internals: further rows of the Point, named "term:..."
    losses: Mapping[str, Callable[..., Tensor]] = {}  # kind -> what takes the place of its loss; for kinds without classes
    together: int = TOGETHER  # tasks in one step, at most


class Way(NamedTuple):
    """How tasks train together under a balancer."""

    pairs: Pairs  # with the balancer's own losses; where texts are shared, these alone, in one order
    most: int  # tasks in one step
    here: Callable[..., "Here"]
    same: bool = False  # whether all tasks of a step take the same rows


def beside(balance: Balancer) -> Beside:
    file = getattr(balance, "__wrapped__", balance).__module__
    said = vars(modules[file]) if file.startswith("anabranch.balance.") else {}
    return Beside(**{n: said[n] for n in Beside._fields if n in said})


def way_of(trainer: Trainer, pairs: Pairs, balance: Balancer) -> Way:
    """InputError where a balancer with terms cannot be of these tasks."""
    said = beside(balance)
    pairs = [(replace(job, kind=kind_with(job, said.losses)), head) for job, head in pairs]
    texts, names = common(pairs), [job.name for job, _ in pairs]
    if said.term:
        if why := unfit(trainer, pairs):
            raise InputError(why)
        texts = texts[: len(texts) - (len(texts) % ROWS == 1)]  # a step of one text has no other to be compared with
        if len(pairs) < 2 or len(texts) < 2:
            what = "two tasks or more that share texts"
            raise InputError(f"a balance with terms needs {what}; {', '.join(names)} share {len(texts)} in training")
        return Way(aligned(pairs, texts), max(len(pairs), said.together), partial(Once, term=said.term), True)
    whole = len(pairs) > 1 and all(len(texts) == len(job.parts["train"]) for job, _ in pairs)
    if whole and said.together == TOGETHER and not unfit(trainer, pairs) and stays(balance, names):
        return Way(aligned(pairs, texts), len(pairs), AtFeatures, True)
    return Way(pairs, said.together, Here)


def common(pairs: Pairs) -> list[tuple[int, ...]]:
    """The rows' units that all tasks have in training."""
    there = [{tuple(units) for units in job.parts["train"].units} for job, _ in pairs]
    return [units for units in dict.fromkeys(map(tuple, pairs[0][0].parts["train"].units)) if all(units in t for t in there)]


def aligned(pairs: Pairs, texts: Sequence[tuple[int, ...]]) -> Pairs:
    """The jobs with these training rows, in this order."""
    out = []
    for job, head in pairs:
        rows = {tuple(units): r for r, units in enumerate(job.parts["train"].units)}
        part = taken(job.parts["train"], [rows[units] for units in texts])
        out.append((replace(job, parts=job.parts | {"train": part}), head))
    return out


def unfit(trainer: Trainer, pairs: Pairs) -> str:
    """Why these tasks' rows cannot go through f once for all; empty where they can."""
    for job, _ in pairs:
        if job.kind.words or job.kind.speaks or job.documents:
            return f"{job.name} is of kind {job.task.kind}; a balance with terms is for tasks with one answer a text"
    if trainer.penal or not all(bank.gate.plain for bank in trainer.banks):
        return "a balance with terms is for gate by_task, and for deltas without a penalty of their own"
    return ""


def stays(balance: Balancer, names: Sequence[str]) -> bool:
    """Whether a balancer looks nowhere but at theta and keeps nothing of theta's size, so that theta may be other numbers in
    each step: seen on toy losses."""
    at, elsewhere = toy(names, 2 * len(names) + 9), list[Tensor]()

    def noted(look: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
        elsewhere.extend([theta] * (theta is not at.theta))
        return look(theta)

    try:
        _, state = balance(None, at._replace(losses=partial(noted, at.losses), grads=partial(noted, at.grads)))
    except WorkError:
        return False
    kept = state.values() if isinstance(state, dict) else [state]
    return not elsewhere and not any(isinstance(v, Tensor) and v.shape[-1:] == at.theta.shape for v in kept)


def toy(names: Sequence[str], size: int) -> Point:
    """Losses |theta - c_t|^2; theta [size], or [t, size] for each task at its own."""
    centres = torch.randn(len(names), size, generator=seeded("toy", *names))
    return Point(torch.zeros(size), lambda p: (p - centres).square().sum(-1), lambda p: 2 * (p - centres), list(names))


def kind_with(job: Job, losses: Mapping[str, Callable[..., Tensor]]) -> Any:
    own, kind = losses.get("pair" if job.kind.two else job.task.kind), type(job.kind)  # a number for two texts is a pair's
    if own is None or job.kind.labels:
        return job.kind
    return type(kind.__name__, (kind,), {"loss": lambda self, out, y, counts: own(out, y, counts)})(**vars(job.kind))


def expand(trainer: Trainer, theta: dict[str, Tensor], copies: int) -> dict[str, Tensor]:
    """Leaves [copies * k + 1, n] of the same k slots: one backward gives the gradient of each task apart.

    A table may come as [copies, k, n]: each task looks at numbers of its own.
    """
    out = {}
    for name, rows in theta.items():
        i, _, table = name.partition(".")
        once = table == "shared"  # one copy for all sites and slots, and so for all tasks
        many = rows if once else rows.flatten(0, 1) if rows.ndim == 3 else rows.repeat(copies, 1)
        leaf = torch.cat([torch.zeros(1, rows.shape[-1]), many])
        if once or (leaf.numel() and trainer.learns(name)):
            leaf.requires_grad_()
        trainer.adapted.sources[int(i)][table] = leaf
        if leaf.requires_grad:
            out[name] = leaf
    return out


def gradients(leaves: dict[str, Tensor], copies: int) -> Tensor:
    """[copies, n]: each task's gradient over all leaves but those of which there is one copy."""
    mine = [leaf for name, leaf in leaves.items() if not name.endswith(".shared")]
    parts = [(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)[1:].reshape(copies, -1) for leaf in mine]
    return torch.cat(parts, 1) if parts else torch.zeros(copies, 0)


class Here:
    """Where one step stands: losses and gradients of its tasks at any numbers of the shared slots, and of their heads there."""

    def __init__(self, trainer: Trainer, common: Learner, work: Sequence[tuple[Learner, list[int]]]) -> None:
        self.trainer, self.common, self.work = trainer, common, work
        self.names = [n for n in common.theta if trainer.learns(n)]
        self.theta = torch.cat([common.theta[n].flatten() for n in self.names])
        self.known: tuple[Tensor, Tensor, Tensor] | None = None  # theta, losses, gradients

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """[n] -> tables [k, n]; [t, n] -> [t, k, n]."""
        parts = theta.split([self.common.theta[n].numel() for n in self.names], -1)
        pairs = zip(self.names, parts, strict=True)
        return {n: part.unflatten(-1, self.common.theta[n].shape) for n, part in pairs}

    def look(self, theta: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
        if self.known is not None and self.known[0] is theta:
            return self.known[1:]
        self.heads = [leaves_of(learner.head) for learner, _ in self.work]
        self.gates = self.trainer.place([learner for learner, _ in self.work], leaves=True)
        self.leaves = expand(self.trainer, self.common.theta | self.split(theta), len(self.work))
        with torch.set_grad_enabled(grad):
            losses = torch.stack(self.trainer.losses(self.work, self.heads, range(1, len(self.work) + 1)))
        if not grad:
            return losses.detach(), torch.zeros(0)
        losses.sum().backward()
        self.known = theta, losses.detach(), gradients(self.leaves, len(self.work))
        return self.known[1:]

    def toward(self, direction: Tensor) -> dict[str, Tensor]:
        """The gradient of every table along a direction that the balancer gave."""
        found = self.split(direction)
        return found | {
            n: leaf.grad[1:] / len(self.work) for n, leaf in self.leaves.items() if n not in found and leaf.grad is not None
        }

    @property
    def point(self) -> Point:
        names = [learner.job.name for learner, _ in self.work]
        self.look(self.theta, True)
        return Point(self.theta, lambda theta: self.look(theta, False)[0], lambda theta: self.look(theta, True)[1], names)

    def sound(self, point: Point) -> bool:
        return bool(point.grads(point.theta).isfinite().all())


class Same(Here):
    """Tasks with the same rows, which go through f once."""

    def __init__(self, trainer: Trainer, common: Learner, work: Sequence[tuple[Learner, list[int]]]) -> None:
        super().__init__(trainer, common, work)
        self.jobs, self.gates = [learner.job for learner, _ in work], dict[str, Tensor]()
        self.heads = [leaves_of(learner.head) for learner, _ in work]
        self.units = [self.jobs[0].parts["train"].units[r] for r in work[0][1]]

    def encoded(self, theta: Tensor) -> Tensor:
        """[units, d], once for all tasks."""
        trainer, flat = self.trainer, [u for row in self.units for u in row]
        self.leaves = expand(trainer, self.common.theta | self.split(theta), 1)
        return torch.cat(encode(trainer.features, trainer.adapted, flat, [1] * len(flat), False, trainer.routes))

    def losses(self, z: Sequence[Tensor]) -> Tensor:
        """[t], each task's at features [units, d] of its own."""
        out, counts, rows = [], [len(row) for row in self.units], self.work[0][1]
        for job, head, own in zip(self.jobs, self.heads, z, strict=True):
            x, y = joined(job.kind, own, counts, self.trainer.features.backbone.d), job.parts["train"].y
            out.append(job.kind.loss(apply(head, x), y[rows] if isinstance(y, Tensor) else [y[r] for r in rows], counts).mean())
        return torch.stack(out)


class AtFeatures(Same):
    """Balanced where the tasks part: at the features z of the rows, so that one gradient goes back through f, however many
    tasks there are (the upper bound of Sener and Koltun 2018, arXiv:1810.04650). Of a weighted sum of losses it is exact.

    The point's theta is z, flat: a balancer does not tell it from other numbers.
    """

    def __init__(self, trainer: Trainer, common: Learner, work: Sequence[tuple[Learner, list[int]]]) -> None:
        super().__init__(trainer, common, work)
        self.z = self.encoded(self.theta)
        self.place = self.z.detach().flatten()

    def look(self, theta: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
        if self.known is None or self.known[0] is not theta:
            self.heads = [leaves_of(learner.head) for learner, _ in self.work]
            z = theta.view_as(self.z).expand(len(self.work), *self.z.shape).clone().requires_grad_()
            losses = self.losses(tuple(z))
            losses.sum().backward()
            assert z.grad is not None
            self.known = theta, losses.detach(), z.grad.flatten(1)
        return self.known[1:]

    def toward(self, direction: Tensor) -> dict[str, Tensor]:
        names = list(self.leaves)
        found = torch.autograd.grad(self.z, [self.leaves[n] for n in names], direction.view_as(self.z))
        return {n: g[1:] for n, g in zip(names, found, strict=True)}

    @property
    def point(self) -> Point:
        names = [job.name for job in self.jobs]
        return Point(self.place, lambda z: self.look(z, False)[0], lambda z: self.look(z, True)[1], names)


class Once(Same):
    """With losses on internals (``term``): back through f once for each loss and term whose gradient is asked for.

    theta requires its gradient, and losses there have their graph: a balancer of a weighted sum needs one way back.
    """

    def __init__(self, trainer: Trainer, common: Learner, work: Sequence[tuple[Learner, list[int]]], term: Any) -> None:
        super().__init__(trainer, common, work)
        self.term, self.terms = term, list[str]()
        self.theta.requires_grad_()
        self.values = self.run(self.theta, first=True)

    def run(self, theta: Tensor, first: bool = False) -> Tensor:
        """[r]: losses, then terms."""
        t, z = len(self.work), self.encoded(theta)
        copies = z.repeat(t, 1)
        losses = self.losses(copies.split(len(z)))
        if first:  # what is trained along a direction of its own
            learn = [p for head in self.heads for p in head.values() if p.requires_grad]
            learn += [leaf for n, leaf in self.leaves.items() if n.endswith(".shared")]
            for p, g in zip(learn, torch.autograd.grad(losses.sum(), learn, retain_graph=True), strict=True):
                p.grad = g
        seen = {"": At(copies, copies, torch.ones(len(copies), dtype=torch.bool))}
        terms = self.term(seen, torch.arange(t).repeat_interleave(len(z)), losses)
        self.terms = [f"term:{n}" for n in terms]
        return torch.cat([losses, torch.stack(list(terms.values()))])

    def grads(self, theta: Tensor) -> Tensor:
        place = theta if theta is self.theta else theta.detach().requires_grad_()
        values = self.values if theta is self.theta else self.run(place)
        return torch.stack([torch.autograd.grad(value, place, retain_graph=True)[0] for value in values])

    @property
    def point(self) -> Point:
        names = [job.name for job in self.jobs] + self.terms
        return Point(self.theta, lambda p: self.values if p is self.theta else self.run(p).detach(), self.grads, names)

    def sound(self, point: Point) -> bool:
        return bool(self.values.isfinite().all())
