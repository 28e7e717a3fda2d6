"""What tasks have in common: ``relate``, a task x task matrix, and ``share``, one slot that all tasks train together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from sys import modules
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anabranch.core.balance import Balancer, Point, lift
from anabranch.core.bank import Bank
from anabranch.core.delta import At, Params
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.engine.cache import recall, write_tensors
from anabranch.engine.job import Head, Job, apply, joined, leaves_of
from anabranch.engine.merging import taken
from anabranch.engine.passes import Routes, encode, seeded
from anabranch.engine.seen import seen
from anabranch.engine.train import ROWS, Learner, Trainer
from anabranch.errors import InputError
from anabranch.settings import card

TOGETHER = 8  # tasks in one step of the shared slot
SAMPLE = 64  # rows of each task from which relate takes its gradient


class Beside(NamedTuple):
    """What a balancer's file may say beside it."""

    term: Callable[..., dict[str, Tensor]] | None = None  # losses on internals: further rows of the Point, named "term:..."
    losses: Mapping[str, Callable[..., Tensor]] = {}  # kind -> what takes the place of its loss; for kinds without classes
    together: int = TOGETHER  # tasks in one step, at most


def beside(balance: Balancer) -> Beside:
    file = getattr(balance, "__wrapped__", balance).__module__
    said = vars(modules[file]) if file.startswith("anabranch.balance.") else {}
    return Beside(**{n: said[n] for n in Beside._fields if n in said})


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

    ``balance`` turns the tasks' gradients [t, n] of a step into one direction [n]; what its file says beside it holds (see
    :class:`Beside`). State is kept after each epoch, behind ``after``.
    """
    said = beside(balance)
    most = max(len(jobs), said.together) if said.term else said.together  # a term sees all tasks
    trainer.common, trainer.routes = True, together(slots)
    learners = []
    for job, head in trained(trainer, jobs, said):
        numbers = {f"head.{n}": t.clone() for n, t in head.items()}
        for i, bank in enumerate(trainer.banks):
            if bank.tables["gate"].n:
                numbers[f"{i}.gate"] = bank.tables["gate"].row(bank.gates(seeded(trainer.seed, job.name, "gate", i)))
        learners.append(Learner(job, numbers, epochs))
    common, state = Learner(jobs[0][0], start(trainer, slots, [m.job for m in learners]), epochs), None
    common.planned = epochs * len(rounds([[[0]] * learner.steps for learner in learners], most))
    saved = trainer.folder / f"shared-{key}.safetensors"
    if found := recall(saved):
        tensors, note = found
        for j, learner in enumerate([common, *learners]):
            mine = {n.partition("|")[2]: t for n, t in tensors.items() if n.startswith(f"{j}|")}
            learner.restore(mine, note["learners"][j])
        state = kept_state(tensors, note)
    while common.epoch < epochs:
        alike = learners[:1] * len(learners) if said.term else learners  # the same texts in the same order
        batches = [learner.batches(trainer.features, trainer.seed) for learner in alike]
        for at_once in rounds(batches, most, trainer.seed, common.epoch):
            work = [(learners[j], rows) for j, rows in at_once]
            state = step(trainer, common, work, balance, state)
        for learner in (common, *learners):
            learner.epoch += 1
        after(common.theta, learners)
        keep(saved, [common, *learners], state)
        progress(common.epoch, epochs)
    for learner, (job, _) in zip(learners, jobs, strict=True):
        learner.job = job
    return common.theta, learners


def trained(trainer: Trainer, jobs: Sequence[tuple[Job, Head]], said: Beside) -> Sequence[tuple[Job, Head]]:
    """The jobs as they train: with the balancer's own losses, and for a term with the rows of the texts that all share."""
    jobs = [(replace(job, kind=kind_with(job, said.losses)), head) for job, head in jobs]
    if not said.term:
        return jobs
    for job, _ in jobs:
        if job.kind.words or job.kind.speaks or job.documents:
            raise InputError(f"{job.name} is of kind {job.task.kind}; a balance with terms is for tasks with one answer a text")
    if trainer.penal or not all(bank.gate.plain for bank in trainer.banks):
        raise InputError("a balance with terms is for gate by_task, and for deltas without a penalty of their own")
    where = [{tuple(units): r for r, units in enumerate(job.parts["train"].units)} for job, _ in jobs]
    texts = [units for units in where[0] if all(units in other for other in where)]
    texts = texts[: len(texts) - (len(texts) % ROWS == 1)]  # a step of one text has no other to be compared with
    if len(jobs) < 2 or len(texts) < 2:
        names = ", ".join(job.name for job, _ in jobs)
        raise InputError(f"a balance with terms needs two tasks or more that share texts; {names} share {len(texts)} in training")
    parts = [taken(job.parts["train"], [rows[u] for u in texts]) for (job, _), rows in zip(jobs, where, strict=True)]
    return [(replace(job, parts=job.parts | {"train": part}), head) for (job, head), part in zip(jobs, parts, strict=True)]


def kind_with(job: Job, losses: Mapping[str, Callable[..., Tensor]]) -> Any:
    own, kind = losses.get("pair" if job.kind.two else job.task.kind), type(job.kind)  # a number for two texts is a pair's
    if own is None or job.kind.labels:
        return job.kind
    return type(kind.__name__, (kind,), {"loss": lambda self, out, y, counts: own(out, y, counts)})(**vars(job.kind))


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

    def sound(self, point: Point) -> bool:
        return bool(point.grads(point.theta).isfinite().all())


class Once(Here):
    """Tasks with the same rows: these go through f once, and back once for each loss and term whose gradient is asked for.

    theta requires its gradient, and losses there have their graph: a balancer of a weighted sum needs one way back.
    """

    def __init__(self, trainer: Trainer, common: Learner, work: Sequence[tuple[Learner, list[int]]], term: Any) -> None:
        super().__init__(trainer, common, work)
        self.term, self.jobs, self.terms = term, [learner.job for learner, _ in work], list[str]()
        self.heads, self.gates = [leaves_of(learner.head) for learner, _ in work], dict[str, Tensor]()
        self.theta.requires_grad_()
        self.values = self.run(self.theta, first=True)

    def run(self, theta: Tensor, first: bool = False) -> Tensor:
        """[r]: losses, then terms."""
        trainer, t, rows = self.trainer, len(self.work), self.work[0][1]
        self.leaves = expand(trainer, self.common.theta | self.split(theta), 1)
        units = [self.jobs[0].parts["train"].units[r] for r in rows]
        flat, counts = [u for row in units for u in row], [len(row) for row in units]
        z = torch.cat(encode(trainer.features, trainer.adapted, flat, [1] * len(flat), False, trainer.routes))
        copies = z.repeat(t, 1)
        losses = torch.stack([self.loss(j, own, counts, rows) for j, own in enumerate(copies.split(len(z)))])
        if first:  # what is trained along a direction of its own
            learn = [p for head in self.heads for p in head.values() if p.requires_grad]
            learn += [leaf for n, leaf in self.leaves.items() if n.endswith(".shared")]
            for p, g in zip(learn, torch.autograd.grad(losses.sum(), learn, retain_graph=True), strict=True):
                p.grad = g
        seen = {"": At(copies, copies, torch.ones(len(copies), dtype=torch.bool))}
        terms = self.term(seen, torch.arange(t).repeat_interleave(len(z)), losses)
        self.terms = [f"term:{n}" for n in terms]
        return torch.cat([losses, torch.stack(list(terms.values()))])

    def loss(self, j: int, z: Tensor, counts: list[int], rows: list[int]) -> Tensor:
        job, y = self.jobs[j], self.jobs[j].parts["train"].y
        x = joined(job.kind, z, counts, self.trainer.features.backbone.d)
        return job.kind.loss(apply(self.heads[j], x), y[rows] if isinstance(y, Tensor) else [y[r] for r in rows], counts).mean()

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


def step(trainer: Trainer, common: Learner, work: Sequence[tuple[Learner, list[int]]], balance: Balancer, state: Any) -> Any:
    """One step of the shared slots along the balanced direction, and of each task's head and gate along its own."""
    term = beside(balance).term
    here = Once(trainer, common, work, term) if term else Here(trainer, common, work)
    point = here.point
    if not here.sound(point):
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
