"""A merge of any form over tasks' slots: what it needs of their data, what it may ask, and what comes of it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank, Tree
from anabranch.core.delta import Params
from anabranch.core.fold import changes
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import Site
from anabranch.engine.algebra import dense_bank, merge
from anabranch.engine.cache import checksum
from anabranch.engine.features import Features
from anabranch.engine.job import Head, Job, Part, apply, joined
from anabranch.engine.passes import Routes, Slot, encode, learned, said, seeded
from anabranch.engine.seen import seen
from anabranch.errors import InputError
from anabranch.merge._look import Look
from anabranch.merge.surgery import corrected
from anabranch.merge.tangent import Linearised

FEW = 64  # rows of each task that a merge may look at
AMONG = 8  # rows of a query's batch, where its loss compares it with others


@dataclass(frozen=True)
class Merged:
    """Slots ``slots[j]`` of ``bank``, as they are stored, are task j's; all the same where one model serves all.

    A merge that takes its last slots from the others (genknowsub) has none for the last tasks.
    """

    bank: Bank
    slots: list[int]
    after: list[Params]  # per task, what corrects its features behind f (surgery): {"down", "up"}, or nothing
    tangent: bool = False  # whether it runs in the tangent space of f

    def adapted(self, f: Any, tail: int) -> Any:
        """What answers."""
        made = Adapted(f, [self.bank], tail)
        return Linearised(made) if self.tangent else made

    def view(self, features: Features, adapted: Any, job: Job, j: int) -> "After":
        """How task j's rows look under it; ``adapted`` is its own."""
        return After(Slot(features, adapted, job.kind.words, always(self.slots[j])), self.after[j])


def merged(features: Features, jobs: Sequence[Job], heads: Sequence[Head], bank: Bank, method: Any, *, few: int = FEW,
           seed: int = 0, split: str = "valid", train: Callable[..., Bank] | None = None) -> Merged:  # fmt: skip
    """Slot j + 1 of ``bank`` is job j's. ``few``: rows of a task's ``split`` that a merge with data may see. ``train``: what a
    recipe trains with (:func:`anabranch.engine.stages.stages`); InputError where one is asked for and there is none."""
    combine, f = make("merge", method), features.backbone.f
    form, parts = next(iter(signature(method_of(combine)).parameters)), [(bank, j + 1) for j in range(len(jobs))]
    if form == "rows":
        with torch.no_grad():
            return one(merge(f, parts, combine, statistics(features, jobs, heads, bank, needs_of(combine), few)), len(jobs))
    if form == "bank":
        asks = "look" in signature(method_of(combine)).parameters
        look = [look_of(features, jobs, heads, bank.sites, [dense(f, bank, j) for _, j in parts], few, seed, split)] * asks
        return apiece(combine(bank, f, *look))
    if form == "train":
        if train is None:
            raise InputError(f"merge {method!r} trains in several stages; it is no merge of finished slots")
        found = combine(train, Adapted(f, [], features.tail), [job.name for job in jobs])
        made = one(found, len(jobs)) if len(found) == 1 else apiece(found)
        return replace(made, tangent=getattr(sys.modules[method_of(combine).__module__], "space", "") == "tangent")
    trees = [dense(f, bank, j + 1) for j in range(len(jobs))]
    tree = combine(trees, look_of(features, jobs, heads, bank.sites, trees, few, seed, split))
    if isinstance(tree, dict):
        return one(dense_bank(bank.sites, plain(tree)), len(jobs))
    whole = dense_bank(bank.sites, plain(tree[0]))
    whole.add([plain(other) for other in tree[1:]])
    return replace(apiece(whole), after=[other.get("", {}) for other in tree])


def one(bank: Bank, tasks: int) -> Merged:
    return Merged(bank, [1] * tasks, [{}] * tasks)


def apiece(bank: Bank) -> Merged:
    """Slot j + 1 is task j's; equal slots become one."""
    sums = [checksum({t: bank.tables[t].data[i] for t in bank.slot_tables}) for i in range(1, len(bank) + 1)]
    first = [1 + sums.index(s) for s in sums]
    moved = bank.remove([i for i, kept in enumerate(first, 1) if i != kept])
    return Merged(bank, [moved[i] for i in first], [{}] * len(first))


def always(slot: int) -> Routes:
    return lambda owners: Route.to([slot] * len(owners))


def plain(tree: Tree) -> Tree:
    return {site: {n: t.detach() for n, t in p.items()} for site, p in tree.items() if site}


def method_of(combine: Any) -> Any:
    return getattr(combine, "__wrapped__", combine)


def needs_of(combine: Any) -> frozenset[str]:
    return frozenset(getattr(sys.modules[method_of(combine).__module__], "needs", ()))


def dense(f: Any, bank: Bank, slot: int) -> Tree:
    """A slot's change of f as a dense tree; zeros where it changes nothing."""
    tree: Tree = {}
    found = changes(f, bank, slot)
    for site in bank.sites:
        own = dict(zip("Wb", site.weight(f), strict=True))
        tree[site.key] = {n: torch.zeros_like(t, dtype=torch.float32) if d is None else d.detach()
                          for (n, t), d in zip(own.items(), found[site.key], strict=True) if t is not None}  # fmt: skip
    return tree


def statistics(features: Features, jobs: Sequence[Job], heads: Sequence[Head], bank: Bank, needs: frozenset[str],
               few: int) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """``gram`` [t, d_in, d_in]: mean of x x^T; ``fisher`` [t, d_out, d_in]: mean squared gradient of W; over training rows."""
    out: dict[str, dict[str, Tensor]] = {}
    if "gram" in needs:
        like = replace(bank, delta=make("delta", "dense"))  # of the tasks' own texts, whatever their slots began with
        found = [seen(features, like, job, frozenset({"cov"})) or {} for job in jobs]
        out["gram"] = {s.key: torch.stack([one[s.key]["cov"] for one in found]) for s in bank.sites}
    if "fisher" in needs:
        pairs = zip(jobs, heads, strict=True)
        squares = [fisher(features, job, head, bank, j, few) for j, (job, head) in enumerate(pairs, 1)]
        out["fisher"] = {s.key: torch.stack([one[s.key]["W"] for one in squares]) for s in bank.sites}
    return out


def fisher(features: Features, job: Job, head: Head, bank: Bank, slot: int, few: int) -> Tree:
    """Mean over rows of the squared gradient of the log loss, under the task's own slot (the empirical Fisher's diagonal).

    The loss of a query is one among other queries' documents: it is taken in batches of near ``AMONG``.
    """
    made = dense_bank(bank.sites, dense(features.backbone.f, bank, slot))
    adapted = Adapted(features.backbone.f, [made], features.tail)
    row, total = made.tables["own"].data[1], torch.zeros(made.tables["own"].n)
    part, n = job.parts["train"], min(few, len(job.parts["train"]))
    with torch.enable_grad():
        for rows in torch.arange(n).tensor_split(-(-n // (AMONG if job.documents else 1))):
            leaf = torch.stack([torch.zeros_like(row), row]).requires_grad_()
            adapted.sources[0]["own"] = leaf
            for loss in losses(features, adapted, job, head, taken(part, rows.tolist())):
                total += torch.autograd.grad(loss, leaf, retain_graph=True)[0][1].square() / n
    return made.tables["own"].split(total)


def taken(part: Part, rows: Sequence[int]) -> Part:
    y = part.y[list(rows)] if isinstance(part.y, Tensor) else [part.y[r] for r in rows if part.y]  # kind generate has none
    return Part([part.units[r] for r in rows], y, [part.labels[r] for r in rows])


def inputs_of(features: Features, adapted: Adapted, job: Job, part: Part) -> tuple[Tensor, list[int]]:
    """Inputs of the job's head for rows under slot 1, and the counts of their units; differentiable."""
    flat = [u for row in part.units for u in row]
    z = torch.cat(encode(features, adapted, flat, [1] * len(flat), job.kind.words))
    return joined(job.kind, z, [len(row) for row in part.units], features.backbone.d), job.counts(features, part.units)


def losses(features: Features, adapted: Adapted, job: Job, head: Head, part: Part) -> Tensor:
    """[n] of the rows, as in training: a query beside its document, a text with the answer in it (of these the mean, [1])."""
    if job.kind.speaks:
        return said(features, adapted, job, [row[0] for row in part.units], 1)[None]
    x, counts = inputs_of(features, adapted, job, replace(part, units=learned(job, part)))
    return job.kind.loss(apply(head, x), part.y, counts)


def look_of(features: Features, jobs: Sequence[Job], heads: Sequence[Head], sites: Sequence[Site], trees: Sequence[Tree],
            few: int, seed: int, split: str) -> Look:  # fmt: skip
    """What a learned merge sees: at most ``few`` rows of each task, drawn by ``seed``."""
    made = dense_bank(list(sites), trees[0])
    adapted = Adapted(features.backbone.f, [made], features.tail)
    parts = []
    for job in jobs:
        part = job.parts[split] if len(job.parts[split]) else job.parts["train"]
        parts.append(taken(part, torch.randperm(len(part), generator=seeded(seed, job.name, "look")).tolist()[:few]))

    def enter(tree: Tree) -> None:
        row = made.tables["own"].row(tree)
        adapted.sources[0]["own"] = torch.stack([torch.zeros_like(row), row])

    def each(tree: Tree, measure: Any, only: int | None = None) -> Tensor:
        enter(tree)
        asked = range(len(jobs)) if only is None else [only]
        return torch.stack([measure(jobs[j], heads[j], parts[j]) for j in asked])

    def labelled(job: Job, head: Head, part: Part) -> Tensor:
        return losses(features, adapted, job, head, part).mean()

    def entropies(tree: Tree) -> Tensor:
        enter(tree)
        found = []
        for job, head, part in zip(jobs, heads, parts, strict=True):
            x, counts = inputs_of(features, adapted, job, part)
            found.append(job.kind.entropy(apply(head, x), counts))
        if all(of_job is None for of_job in found):
            names = ", ".join(f"{job.name} ({job.task.kind})" for job in jobs)
            raise InputError(
                f"it learns from the entropy of answers, which only classes, labels and choices have; got {names}: "
                "take anisotropic with objective: labels, or a merge without data, such as ties"
            )
        return torch.stack([torch.zeros(()) if of_job is None else of_job.mean() for of_job in found])

    def vectors(tree: Tree, j: int) -> Tensor:
        enter(tree)
        units = [u for row in parts[j].units for u in row]
        return torch.cat(encode(features, adapted, units, [1] * len(units), jobs[j].kind.words))

    return Look(losses=lambda tree, j=None: each(tree, labelled, j), entropies=entropies, features=vectors,
                own=lambda j: trees[j], f=features.backbone.f, sites=list(sites), rng=seeded(seed, "look"))  # fmt: skip


class After:
    """A view whose features are corrected behind f."""

    def __init__(self, view: Slot, p: Params) -> None:
        self.view, self.p = view, p

    def __call__(self, units: Sequence[int]) -> Tensor:
        z = self.view(units)
        return corrected(z, self.p) if self.p else z

    def speak(self, units: Sequence[int]) -> list[str]:
        return self.view.speak(units)
