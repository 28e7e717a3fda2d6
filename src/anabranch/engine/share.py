"""What tasks have in common: ``relate``, a task x task matrix, and ``share``, one slot that all tasks train together."""

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anabranch.core.balance import Balancer, lift
from anabranch.core.bank import Bank
from anabranch.core.delta import At, Params
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.engine.balanced import TOGETHER, Here, expand, gradients, way_of
from anabranch.engine.cache import recall, write_tensors
from anabranch.engine.job import Head, Job
from anabranch.engine.passes import Routes, seeded
from anabranch.engine.seen import seen
from anabranch.engine.train import Learner, Trainer
from anabranch.errors import InputError
from anabranch.settings import card

SAMPLE = 64  # rows of each task from which relate takes its gradient


def start(trainer: Trainer, slots: int = 1, jobs: Sequence[Job] = ()) -> dict[str, Tensor]:
    """The numbers [slots, n] of fresh shared slots by table, and what a delta shares between slots.

    A delta whose start needs f's weights or statistics of its inputs reads them from the training rows of ``jobs``.
    """
    out: dict[str, Tensor] = {}
    for i, bank in enumerate(trainer.banks):
        known, rows = seen_by_all(trainer, bank, jobs), []
        for k in range(slots):
            rng, slot = seeded(trainer.seed, "shared slot", i, *([k] if k else [])), {}
            for site in bank.sites:
                p = bank.delta.init(site, rng, known.get(site.key))
                keys = bank.gate.key(site, p, rng)  # those of slots that train together must not be the same
                slot[site.key] = p | {f"key.{n}": t for n, t in keys.items()}
            rows.append(bank.flat(slot))
        out |= {f"{i}.{table}": torch.stack([row[table] for row in rows]) for table in bank.slot_tables}
        if bank.tables["shared"].n:
            out[f"{i}.shared"] = bank.tables["shared"].data[1:].clone()
    return out


def seen_by_all(trainer: Trainer, bank: Bank, jobs: Sequence[Job]) -> dict[str, Params]:
    """What the bank's delta needs to begin (:func:`anabranch.engine.seen.seen`), each task counting the same."""
    needs, total = bank.delta.needs, dict[str, Params]()
    if needs and not jobs:
        name = card(bank.delta)["method"].partition(".")[2]
        raise InputError(
            f"a shared slot of delta {name} begins at {', '.join(sorted(needs))} of its sites: pass the jobs that train it"
        )
    for job in jobs if needs else ():
        found = seen(trainer.features, bank, job, needs - {"W"} if total else needs) or {}
        total = {key: p | {n: p[n] + t for n, t in found[key].items()} for key, p in total.items()} if total else found
        if needs == {"W"}:  # f's own, whatever the task
            break
    return {key: {n: t if n == "W" else t / len(jobs) for n, t in p.items()} for key, p in total.items()}


def relate(trainer: Trainer, jobs: Sequence[tuple[Job, Head]]) -> Tensor:
    """[t, t] in [-1, 1]: cosine between the tasks' gradients of one fresh shared slot, each at its probe's head.

    Positive: a first step for one task also lowers the loss of the other (Fifty et al. 2021, arXiv:2109.04617; Yu et al.
    2020, arXiv:2001.06782). From up to 64 rows of each task, so entries near 0 are noise.
    """
    theta, rows = start(trainer, 1, [job for job, _ in jobs]), []
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
    after: Callable[[dict[str, Tensor], list[Learner]], None] = lambda theta, learners: None,
) -> tuple[dict[str, Tensor], list[Learner]]:  # fmt: skip
    """Trains ``slots`` slots over all tasks; returns their numbers [slots, n], and learners that hold the tasks' heads and gates.

    ``balance`` turns the tasks' gradients [t, n] of a step into one direction [n], in the way that suits it and the tasks
    (:func:`anabranch.engine.balanced.way_of`). State is kept after each epoch, behind ``after``.
    """
    way = way_of(trainer, jobs, balance)
    trainer.common, trainer.routes = True, together(slots)
    learners = []
    for job, head in way.pairs:
        numbers = {f"head.{n}": t.clone() for n, t in head.items()}
        for i, bank in enumerate(trainer.banks):
            if bank.tables["gate"].n:
                numbers[f"{i}.gate"] = bank.tables["gate"].row(bank.gates(seeded(trainer.seed, job.name, "gate", i)))
        learners.append(Learner(job, numbers, epochs))
    common, state = Learner(jobs[0][0], start(trainer, slots, [m.job for m in learners]), epochs), None
    common.planned = epochs * len(rounds([[[0]] * learner.steps for learner in learners], way.most))
    saved = trainer.folder / f"shared-{key}.safetensors"
    if found := recall(saved):
        tensors, note = found
        for j, learner in enumerate([common, *learners]):
            mine = {n.partition("|")[2]: t for n, t in tensors.items() if n.startswith(f"{j}|")}
            learner.restore(mine, note["learners"][j])
        state = kept_state(tensors, note)
    while common.epoch < epochs:
        alike = learners[:1] * len(learners) if way.same else learners  # the same texts in the same order
        batches = [learner.batches(trainer.features, trainer.seed) for learner in alike]
        for at_once in rounds(batches, way.most, trainer.seed, common.epoch):
            work = [(learners[j], rows) for j, rows in at_once]
            state = step(way.here(trainer, common, work), balance, state)
        for learner in (common, *learners):
            learner.epoch += 1
        after(common.theta, learners)
        keep(saved, [common, *learners], state)
        progress(common.epoch, epochs)
    for learner, (job, _) in zip(learners, jobs, strict=True):
        learner.job = job
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


def step(here: Here, balance: Balancer, state: Any) -> Any:
    """One step of the shared slots along the balanced direction, and of each task's head and gate along its own."""
    trainer, common, point = here.trainer, here.common, here.point
    if not here.sound(point):
        raise FloatingPointError(f"its training diverged in pass {common.epoch + 1}")
    direction, state = balance(state, point)
    if direction is not None:
        found = here.toward(direction)
        alone = all(len(common.theta[n]) == 1 for n in here.names)
        trainer.update(common, found, trainer.refine(common, found) if alone else set())
    for j, ((learner, _), head) in enumerate(zip(here.work, here.heads, strict=True)):
        mine = {n: leaf.grad[j + 1] for n, leaf in here.gates.items() if leaf.grad is not None}
        trainer.update(learner, mine | {f"head.{n}": t.grad for n, t in head.items() if t.grad is not None})
    return state


def rounds(batches: Sequence[list[list[int]]], most: int = TOGETHER, *place: Any) -> list[list[tuple[int, list[int]]]]:
    """What each step trains: a batch of each task in turn while it has any, at most ``most`` tasks a step.

    More tasks than that meet in groups of near the same size, drawn anew in each turn by ``place``, such as seed and pass.
    """
    out = []
    for r in range(max(map(len, batches))):
        alive = [(j, rows[r]) for j, rows in enumerate(batches) if r < len(rows)]
        order = torch.arange(len(alive))
        if len(alive) > most > 1:
            order = torch.randperm(len(alive), generator=seeded(*place, "rounds", r))
        for group in order.tensor_split(-(-len(alive) // most)):
            out.append([alive[j] for j in group.tolist()])
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


def fitting(bank: Bank) -> Bank:
    """The bank; InputError where its gate weighs each token of the text, of which the delta's own soft tokens are none."""
    delta, gate = bank.delta, bank.gate
    if delta.door == "site" or gate.plain or gate.on == "params":
        return bank
    site, rng, two = bank.sites[0], seeded("fitting"), torch.ones(2, dtype=torch.bool)
    keys = gate.key(site, delta.init(site, rng), rng)
    x = torch.zeros(2, site.d_in)  # [tokens, d], seen by two candidates
    w = gate.weigh(gate.own(site, 2, rng), {n: torch.stack([t, t]) for n, t in keys.items()}, At(x, x, two), two)
    if w.ndim > 1:
        name, kind = (card(method)["method"].partition(".")[2] for method in (gate, delta))
        raise InputError(
            f"gate {name} weighs the text's tokens one by one, and delta {kind} adds tokens of its own, the same for a whole row:"
            f" take a gate that weighs rows, such as learned or keyed, or with {name} a delta at the layers, such as lora"
        )
    return bank


def balancer(spec: Any) -> Balancer:
    """A plan's ``balance``; InputError for what trains several times, which :func:`anabranch.engine.recipe.jointly` does."""
    method = make("balance", spec)
    first = next(iter(signature(getattr(method, "__wrapped__", method)).parameters))
    if first == "train":
        raise InputError(f"balance {spec!r} trains several times, so it is no step of one training")
    return method if first == "state" else lift(method)
