"""What tasks have in common: ``relate``, a task x task matrix, and ``share``, one slot that all tasks train together."""

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anabranch.core.balance import Balancer, Point, lift
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.engine.cache import recall, write_tensors
from anabranch.engine.job import Head, Job, leaves_of
from anabranch.engine.passes import Routes, seeded
from anabranch.engine.train import Learner, Trainer
from anabranch.errors import InputError

TOGETHER = 8  # tasks in one step of the shared slot
SAMPLE = 64  # rows of each task from which relate takes its gradient


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
        trainer.adapted.sources[int(i)][table] = leaf.requires_grad_(once or (leaf.numel() > 0 and trainer.learns(name)))
        if leaf.requires_grad:
            out[name] = leaf
    return out


def start(trainer: Trainer, slots: int = 1) -> dict[str, Tensor]:
    """The numbers [slots, n] of fresh shared slots by table, and what a delta shares between slots."""
    out: dict[str, Tensor] = {}
    for i, bank in enumerate(trainer.banks):
        rows = [bank.flat(bank.fresh(seeded(trainer.seed, "shared slot", i, *([k] if k else [])))) for k in range(slots)]
        out |= {f"{i}.{table}": torch.stack([row[table] for row in rows]) for table in bank.slot_tables}
        if bank.tables["shared"].n:
            out[f"{i}.shared"] = bank.tables["shared"].data[1:].clone()
    return out


def gradients(leaves: dict[str, Tensor], copies: int) -> Tensor:
    """[copies, n]: each task's gradient over all leaves but those of which there is one copy."""
    mine = [leaf for name, leaf in leaves.items() if not name.endswith(".shared")]
    parts = [(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)[1:].reshape(copies, -1) for leaf in mine]
    return torch.cat(parts, 1) if parts else torch.zeros(copies, 0)


def relate(trainer: Trainer, jobs: Sequence[tuple[Job, Head]]) -> Tensor:
    """[t, t] in [-1, 1]: cosine between the tasks' gradients of one fresh shared slot, each at its probe's head.

    Positive: a first step for one task also lowers the loss of the other (Fifty et al. 2021, arXiv:2109.04617; Yu et al.
    2020, arXiv:2001.06782). From up to 64 rows of each task, so entries near 0 are noise.
    """
    theta, rows = start(trainer), []
    for at in range(0, len(jobs), TOGETHER):
        group = jobs[at : at + TOGETHER]
        work = []
        for job, head in group:
            learner = Learner(job, {f"head.{n}": t for n, t in head.items()}, 1)
            order = torch.randperm(len(job.parts["train"]), generator=seeded(trainer.seed, job.name, "relate")).tolist()
            work.append((learner, order[:SAMPLE]))
        leaves = expand(trainer, theta, len(group))
        losses = trainer.losses(work, [head for _, head in group], range(1, len(group) + 1))
        torch.stack(losses).sum().backward()
        rows.append(gradients(leaves, len(group)))
    unit = torch.nn.functional.normalize(torch.cat(rows), dim=1)
    return (unit @ unit.mT).clamp(-1, 1)


def share(
    trainer: Trainer, jobs: Sequence[tuple[Job, Head]], epochs: int, balance: Balancer, key: str,
    progress: Callable[[int, int], None] = lambda done, of: None, slots: int = 1,
) -> tuple[dict[str, Tensor], list[Learner]]:  # fmt: skip
    """Trains ``slots`` slots over all tasks; returns their numbers [slots, n], and learners that hold the tasks' heads and gates.

    ``balance`` turns the tasks' gradients [t, n] of a step into one direction [n]. State is kept after each epoch.
    """
    trainer.common, trainer.routes = True, together(slots)
    learners = []
    for job, head in jobs:
        numbers = {f"head.{n}": t.clone() for n, t in head.items()}
        for i, bank in enumerate(trainer.banks):
            if bank.tables["gate"].n:
                numbers[f"{i}.gate"] = bank.tables["gate"].row(bank.gates(seeded(trainer.seed, job.name, "gate", i)))
        learners.append(Learner(job, numbers, epochs))
    common, state = Learner(jobs[0][0], start(trainer, slots), epochs), None
    common.planned = epochs * len(rounds([[[0]] * learner.steps for learner in learners]))
    saved = trainer.folder / f"shared-{key}.safetensors"
    if found := recall(saved):
        tensors, note = found
        for j, learner in enumerate([common, *learners]):
            mine = {n.partition("|")[2]: t for n, t in tensors.items() if n.startswith(f"{j}|")}
            learner.restore(mine, note["learners"][j])
        state = kept_state(tensors, note)
    while common.epoch < epochs:
        for at_once in rounds([learner.batches(trainer.features, trainer.seed) for learner in learners]):
            work = [(learners[j], rows) for j, rows in at_once]
            state = step(trainer, common, work, balance, state)
        for learner in (common, *learners):
            learner.epoch += 1
        keep(saved, [common, *learners], state)
        progress(common.epoch, epochs)
    return common.theta, learners


def together(slots: int) -> Routes:
    """Owner c, from 1, takes its copy of all slots and row c of the gates."""

    def routes(owners: Sequence[int]) -> Route:
        who = torch.tensor(list(owners))
        return Route.to((who[:, None] - 1) * slots + torch.arange(1, slots + 1), who=who)

    return routes


def over(slots: int) -> Routes:
    """Every owner takes all slots of a library, and its own row of the gates."""

    def routes(owners: Sequence[int]) -> Route:
        return Route.to(torch.arange(1, slots + 1).expand(len(owners), -1), who=torch.tensor(list(owners)))

    return routes


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

    @property
    def point(self) -> Point:
        names = [learner.job.name for learner, _ in self.work]
        self.look(self.theta, True)
        return Point(self.theta, lambda theta: self.look(theta, False)[0], lambda theta: self.look(theta, True)[1], names)


def step(trainer: Trainer, common: Learner, work: Sequence[tuple[Learner, list[int]]], balance: Balancer, state: Any) -> Any:
    """One step of the shared slots along the balanced direction, and of each task's head and gate along its own."""
    here = Here(trainer, common, work)
    point = here.point
    if not point.grads(point.theta).isfinite().all():
        raise FloatingPointError(f"its training diverged in pass {common.epoch + 1}")
    direction, state = balance(state, point)
    if direction is not None:
        found = here.split(direction)
        found |= {n: leaf.grad[1:] / len(work) for n, leaf in here.leaves.items() if n not in found and leaf.grad is not None}
        alone = all(len(common.theta[n]) == 1 for n in here.names)
        trainer.update(common, found, trainer.refine(common, found) if alone else set())
    for j, ((learner, _), head) in enumerate(zip(work, here.heads, strict=True)):
        mine = {n: leaf.grad[j + 1] for n, leaf in here.gates.items() if leaf.grad is not None}
        trainer.update(learner, mine | {f"head.{n}": t.grad for n, t in head.items() if t.grad is not None})
    return state


def rounds(batches: Sequence[list[list[int]]]) -> list[list[tuple[int, list[int]]]]:
    """What each step trains: a batch of each task in turn while it has any, at most ``TOGETHER`` tasks a step."""
    out = []
    for r in range(max(map(len, batches))):
        alive = [(j, rows[r]) for j, rows in enumerate(batches) if r < len(rows)]
        out += [alive[at : at + TOGETHER] for at in range(0, len(alive), TOGETHER)]
    return out


def keep(path: Path, learners: Sequence[Learner], state: Any) -> None:
    """The balancer's state: numbers in the note, tensors beside those of the learners."""
    tensors = {f"{j}|{n}": t for j, learner in enumerate(learners) for n, t in learner.state().items()}
    inside = state if isinstance(state, dict) else {"": state}
    tensors |= {f"state|{n}": t for n, t in inside.items() if isinstance(t, Tensor)}
    plain = {n: v for n, v in inside.items() if not isinstance(v, Tensor)}
    write_tensors(path, tensors, {"learners": [learner.note() for learner in learners], "state": plain})


def kept_state(tensors: dict[str, Tensor], note: dict[str, Any]) -> Any:
    found = note["state"] | {n.partition("|")[2]: t for n, t in tensors.items() if n.startswith("state|")}
    return found[""] if found.keys() == {""} else found


def balancer(spec: Any) -> Balancer:
    """A plan's ``balance``; InputError for what trains several times or needs tasks that share their texts."""
    method = make("balance", spec)
    first = next(iter(signature(getattr(method, "__wrapped__", method)).parameters))
    if first == "train":
        raise InputError(f"balance {spec!r} trains several times before it balances; use it from Python")
    return method if first == "state" else lift(method)
