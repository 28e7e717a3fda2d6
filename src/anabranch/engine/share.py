"""What tasks have in common: ``relate``, a task x task matrix, and ``share``, one slot that all tasks train together."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anabranch.core.balance import Balancer, Point
from anabranch.core.route import Route
from anabranch.engine.cache import recall, write_tensors
from anabranch.engine.job import Head, Job, leaves_of
from anabranch.engine.train import Learner, Routes, Trainer, seeded

TOGETHER = 8  # tasks in one step of the shared slot
SAMPLE = 64  # rows of each task from which relate takes its gradient


def expand(trainer: Trainer, theta: dict[str, Tensor], copies: int) -> dict[str, Tensor]:
    """Leaves [copies * k + 1, n] of the same k slots: one backward gives the gradient of each task apart."""
    out = {}
    for name, rows in theta.items():
        i, _, table = name.partition(".")
        once = table == "shared"  # one copy for all sites and slots, and so for all tasks
        leaf = torch.cat([torch.zeros(1, rows.shape[1]), rows if once else rows.repeat(copies, 1)])
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
        state = note["state"]
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


def step(trainer: Trainer, common: Learner, work: Sequence[tuple[Learner, list[int]]], balance: Balancer, state: Any) -> Any:
    """One step of the shared slots along the balanced direction, and of each task's head and gate along its own."""
    heads = [leaves_of(learner.head) for learner, _ in work]
    gates = trainer.place([learner for learner, _ in work], leaves=True)
    leaves = expand(trainer, common.theta, len(work))
    losses = trainer.losses(work, heads, range(1, len(work) + 1))
    torch.stack(losses).sum().backward()
    rows, values = gradients(leaves, len(work)), torch.stack(losses).detach()
    if not rows.isfinite().all():
        raise FloatingPointError(f"its training diverged in pass {common.epoch + 1}")
    own = [n for n in leaves if not n.endswith(".shared")]
    theta = torch.cat([common.theta[n].flatten() for n in own])
    direction, state = balance(state, Point(theta, lambda _: values, lambda _: rows, [learner.job.name for learner, _ in work]))
    if direction is not None:
        pieces = direction.split([common.theta[n].numel() for n in own])
        found = {n: piece.view_as(common.theta[n]) for n, piece in zip(own, pieces, strict=True)}
        found |= {n: leaf.grad[1:] / len(work) for n, leaf in leaves.items() if n not in found and leaf.grad is not None}
        trainer.update(common, found, trainer.refine(common, found) if len(theta) and len(common.theta[own[0]]) == 1 else set())
    for j, ((learner, _), head) in enumerate(zip(work, heads, strict=True)):
        mine = {n: leaf.grad[j + 1] for n, leaf in gates.items() if leaf.grad is not None}
        trainer.update(learner, mine | {f"head.{n}": t.grad for n, t in head.items() if t.grad is not None})
    return state


def rounds(batches: Sequence[list[list[int]]]) -> list[list[tuple[int, list[int]]]]:
    """What each step trains: a batch of each task in turn while it has any, at most ``TOGETHER`` tasks a step."""
    out = []
    for r in range(max(map(len, batches))):
        alive = [(j, rows[r]) for j, rows in enumerate(batches) if r < len(rows)]
        out += [alive[at : at + TOGETHER] for at in range(0, len(alive), TOGETHER)]
    return out


def keep(path: Any, learners: Sequence[Learner], state: Any) -> None:
    tensors = {f"{j}|{n}": t for j, learner in enumerate(learners) for n, t in learner.state().items()}
    write_tensors(path, tensors, {"learners": [learner.note() for learner in learners], "state": state})
