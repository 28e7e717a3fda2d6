"""The shared rung: slots that all tasks train together, under the plan's balance and gate, or a gate over slots that stay."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anabranch.core.bank import Bank
from anabranch.core.gate import Gate
from anabranch.core.names import make
from anabranch.engine.cache import checksum, digest
from anabranch.engine.job import Head, Job
from anabranch.engine.later import lends
from anabranch.engine.passes import seeded
from anabranch.engine.recipe import jointly, unpacked
from anabranch.engine.result import numbers_of, served
from anabranch.engine.run import Run, epochs_of
from anabranch.engine.seen import seen
from anabranch.engine.share import over
from anabranch.engine.train import Learner, Trainer
from anabranch.engine.workers import each
from anabranch.errors import InputError
from anabranch.settings import card
from anabranch.task.plan import Budget


def slots_of(gate: Gate) -> int:
    """Slots that a gate trains together with its weights: its setting ``slots``, else 1 (by_task) or 4."""
    return 1 if gate.plain else int(card(gate)["settings"].get("slots", 4))


def learnable(run: Run) -> list[tuple[Job, Head]]:
    """Tasks and the heads that they begin with: for labels half of the probe's, as one that fits leaves little to learn from."""
    out = []
    for name, job in run.jobs.items():
        head, part = run.rungs[name][0].head, 0.5 if job.kind.labels and not job.kind.words else 1.0
        out.append((job, head | {n: part * head[n] for n in ("W", "b") if n in head}))
    return out


def trainer_of(run: Run, banks: list[Bank] | None = None, **more: Any) -> Trainer:
    return Trainer(run.features, run.banks if banks is None else banks, run.rates, run.work / "train", run.plan.seed, **more)


def common_of(run: Run) -> list[str]:
    """Checksums of what the slots of a bank share, and of where they begin."""
    found = [checksum({"shared": bank.tables["shared"].data}) for bank in run.banks if bank.tables["shared"].n]
    return found + ([checksum(run.earlier.own)] if run.earlier and run.earlier.own else [])


def shared(run: Run) -> None:
    """Slots that all tasks train together, with the plan's balance and gate; or a gate over the tasks' own slots."""
    gate = make("gate", run.plan.gate)
    if run.earlier:
        return routed(run, run.earlier.slots, learnable(run)) if run.earlier.slots else None
    if gate.library:
        return over_library(run)
    if len(run.jobs) < 2 and gate.plain and not any(bank.tables["shared"].n for bank in run.banks):
        return None
    trainer, pairs = trainer_of(run, run.gated), learnable(run)
    epochs = min(epochs_of(run, job) for job, _ in pairs)
    key = digest([run.key(job, epochs) for job, _ in pairs], str(run.plan.balance), str(run.plan.gate))
    try:
        groups = jointly(trainer, pairs, epochs, run.plan.balance or "mean", key,
                         lambda done, of: run.told("share", done, of, "passes"), slots_of(gate),
                         gate.groups(list(run.jobs)))  # fmt: skip
    except FloatingPointError as error:
        run.notes.append(f"the shared slot is left out: {error}; lower lr")
        return None
    slots, takes, learners = unpacked(groups, slots_of(gate), run.banks)
    if len(groups) > 1:
        clustered(run, takes, learners)
    for bank, own in zip(run.gated, run.banks, strict=True):
        bank.tables["shared"].data[1:] = own.tables["shared"].data[1:]
    widest = max(numbers_of(learner.head) for learner in learners.values())
    found = each(list(learners.values()), lambda m: served(run, run.gated, "shared", m.job, slots, m.theta, widest))
    for (name, learner), rung in zip(learners.items(), found, strict=True):
        rung.gate |= lends(gate, run.features, learner.job)
        run.rungs[name].append(rung)
    return None


def clustered(run: Run, takes: Mapping[str, list[int]], learners: Mapping[str, Learner]) -> None:
    """Gives banks and learners a gate under which a task takes its own group's slot, of all that there are."""
    if not run.gated[0].gate.plain:
        raise InputError(f"balance {run.plan.balance!r} makes slots of its own: take gate by_task or enforced")
    one = torch.eye(1 + max(slot for found in takes.values() for slot in found))
    run.gated = [Bank.make(b.delta, make("gate", "fixed"), b.sites, seeded(run.plan.seed, "gated", i), None, b.stage, len(one))
                 for i, b in enumerate(run.banks)]  # fmt: skip
    for name, learner in learners.items():
        learner.theta |= {f"{i}.gate": bank.tables["gate"].row({s.key: {"c": one[takes[name][0]]} for s in bank.sites})
                          for i, bank in enumerate(run.gated)}  # fmt: skip


def over_library(run: Run) -> None:
    """The plan's gate over the own slots of all tasks, which stay as they are; keys are learned by each slot's task alone."""
    if not run.own_slots:
        raise InputError(f"gate {run.plan.gate!r} routes over the tasks' own slots: add delta to stages")
    gate, slots = run.gated[0].gate, []
    for name, job in run.jobs.items():
        own = {n: t for n, t in run.own_slots[name].items() if not n.startswith("head.")}
        for i, bank in enumerate(run.gated):
            tree = bank.tree({t: own[f"{i}.{t}"] for t in bank.slot_tables if t != "keys"})
            asked, rng = seen(run.features, bank, job), seeded(run.plan.seed, name, "key", i)
            keys = {s.key: gate.key(s, tree[s.key], rng, (asked or {}).get(s.key)) for s in bank.sites}
            own[f"{i}.keys"] = bank.tables["keys"].row(keys)
        slots.append(own)
    pairs = [(job, run.rungs[name][1].head) for name, job in run.jobs.items()]
    if gate.learner() is not gate:
        alone = [replace(bank, gate=gate.learner()) for bank in run.gated]
        trainer = trainer_of(run, alone, learning={"keys"}, begin=dict(zip(run.jobs, slots, strict=True)))
        todo = [(job, head, 1, run.key(job, "keys", str(run.plan.gate), common_of(run))) for job, head in pairs]
        theta = {learner.job.name: learner.theta for learner in trainer.run(todo)}
        slots = [own | {n: theta[name][n] for n in own} for name, own in zip(run.jobs, slots, strict=True)]
    routed(run, slots, pairs)


def routed(run: Run, slots: Sequence[Mapping[str, Tensor]], pairs: Sequence[tuple[Job, Head]]) -> None:
    """Each task's row of the gate over slots that stay as they are, where it has one, and its head, learned together."""
    mine = {job.name: {f"head.{n}": t for n, t in head.items()} for job, head in pairs}
    if any(bank.tables["gate"].n for bank in run.gated):
        library = {n: torch.stack([own[n] for own in slots]) for n in slots[0]}
        begin = {job.name: run.earlier.begin(run.features, job) for job, _ in pairs} if run.earlier else {}
        trainer = trainer_of(run, run.gated, routes=over(len(slots)), library=library, begin=begin)
        whole = digest([run.key(job) for job, _ in pairs], common_of(run)) if not run.earlier else checksum(library)
        todo = []
        for job, head in pairs:
            how = str(run.plan.gate), whole, *([checksum(begin[job.name])] if begin else [])
            todo.append((job, head, n := epochs_of(run, job), run.key(job, n, "gate", *how)))
        mine = {learner.job.name: learner.best for learner in trainer.run(todo)}
    widest = max(numbers_of(head) for _, head in pairs)
    jobs, gate = list(run.jobs.values()), run.gated[0].gate
    if run.earlier:  # whose slots are stored, and in what form
        run = replace(run, plan=run.plan.model_copy(update={"budget": Budget()}))
    found = each(jobs, lambda job: served(run, run.gated, "shared", job, slots, mine[job.name], widest))
    for job, rung in zip(jobs, found, strict=True):
        rung.gate |= lends(gate, run.features, job)
        run.rungs[job.name].append(rung)
