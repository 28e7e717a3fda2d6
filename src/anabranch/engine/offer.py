"""What a plan's ``merge`` offers: the tasks' deltas merged beside them as they are, with what it saves and what it costs.

Of several merges the one with the best mean validation score. The bundle of the run stays as it is; the merged one, with the
tasks' heads, is RUN/merged, a run of its own for ``predict``, ``evaluate`` and ``serve``: one slot for all tasks, or where the
merge gives each task a model of its own a slot each, in the merge's form.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Generator, nn

from anabranch.core.bank import Bank
from anabranch.core.fold import changes
from anabranch.core.names import every, find, make
from anabranch.engine import store
from anabranch.engine.cache import sealed, write_json
from anabranch.engine.choose import Rung, climb, tested
from anabranch.engine.job import Head, Job
from anabranch.engine.merging import Merged, merged, method_of
from anabranch.engine.passes import seeded
from anabranch.engine.result import bank_like, cards
from anabranch.engine.run import Run, epochs_of
from anabranch.engine.stages import stages
from anabranch.engine.train import Trainer
from anabranch.errors import InputError, WorkError
from anabranch.settings import card
from anabranch.task.kind._base import Post
from anabranch.task.plan import Plan

NAME = "merged"
FAULTS = (ArithmeticError, LookupError, RuntimeError, ValueError)  # of a merge's own computing; an InputError is one
Entry = tuple[Mapping[str, Any], Head, Post, Mapping[str, str] | None]  # a task's record, head, settled numbers and corpus


def merges_of(plan: Plan) -> list[Any]:
    """InputError for deltas of several entries."""
    specs = plan.merge if isinstance(plan.merge, list) else [plan.merge] * (plan.merge is not None)
    for spec in specs:
        make("merge", spec)
    if specs and isinstance(plan.delta, list) and len(plan.delta) > 1:
        raise InputError(
            "a plan's merge works on one kind of delta: leave one entry under delta, or leave merge out and merge what fit "
            "made: anabranch merge RUN --merge NAME"
        )
    return specs


def finished(spec: Any) -> Any:
    """The merge that ``spec`` says; InputError for one that trains, as finished deltas cannot be trained again."""
    combine = make("merge", spec)
    if trains(combine):
        fit = [n for n in every("merge") if not trains(find(f"merge.{n}"))]
        name = card(combine)["method"].partition(".")[2]
        raise InputError(
            f"merge {name} trains in several stages, which needs the tasks' rows: write merge: {name} into the plan and fit it; "
            f"merge RUN takes finished deltas, by one of {', '.join(fit)}"
        )
    return combine


def trains(combine: Any) -> bool:
    """Whether a merge is a recipe, which trains between merges."""
    return next(iter(signature(method_of(combine)).parameters)) == "train"


def weighed(f: nn.Module, bank: Bank) -> None:
    """InputError where a slot of the bank changes activations, which cannot be merged."""
    one = replace(bank, tables={n: t.copy() for n, t in bank.tables.items()})
    one.add([bank.fresh(Generator())])
    changes(f, one, 1)


def offer(run: Run, bundle: Mapping[str, Any], chosen: Mapping[str, Rung]) -> dict[str, Any] | None:
    """Merges the slots of the tasks that answer from their own; None where there are not two, or no merge works.

    A merge that cannot be of these tasks, or fails, is left out with a note: what was trained is not lost over it.

    ``{"method", "one", "tasks": {task: {"single", "merged"}}, "mean_single", "mean_merged", "kilobytes_saved", "valid": {merge:
    mean validation score}, "bundle"}``; single and merged are test scores, one says whether all tasks share one slot.
    """
    names = [n for n, rung in chosen.items() if rung.name == "delta"]
    if len(names) < 2:
        run.notes.append(f"nothing was merged: {len(names)} of the tasks answer from a delta of their own")
        return None
    trees = {n: store.unpack(chosen[n].packed) for n in names}
    bank = bank_like(run.banks[0], 0, trees[names[0]])
    bank.add([store.cut(tree, 0) for tree in trees.values()])
    tried: dict[str, tuple[float, dict[str, Rung], Merged]] = {}
    for i, spec in enumerate(merges := merges_of(run.plan)):
        run.told("merge", i, len(merges), str(spec))
        try:
            tried[str(spec)] = attempt(run, names, chosen, bank, spec)
        except WorkError:
            raise  # the disk's, which is no fault of the merge
        except FAULTS as error:
            how = "" if isinstance(error, InputError) else f"it failed with {type(error).__name__}: "
            run.notes.append(f"merge {spec!r} is left out: {how}{error}")
    if not tried:
        return None
    best = max(tried, key=lambda spec: tried[spec][0])
    _, rungs, made = tried[best]
    if gone := names[len(rungs) :]:
        run.notes.append(f"merge {best} takes {', '.join(gone)}, the last of the tasks, from the others and has none for it")
    adapted = made.adapted(run.backbone.f, run.features.tail)
    for j, n in enumerate(rungs):
        tested(rungs[n], run.jobs[n], run.features, made.view(run.features, adapted, run.jobs[n], j))
    entries: dict[str, Entry] = {}
    for n in rungs:
        record = bundle["tasks"][n] | {"valid": rungs[n].valid, "test": rungs[n].test}
        entries[n] = record, chosen[n].head, chosen[n].post, run.tasks[n].corpus
    spec = next(one for one in merges if str(one) == best)
    size = written(run.out / NAME, made, bundle, entries, spec)[1]
    pairs = {n: {"single": chosen[n].test, NAME: rungs[n].test} for n in rungs}
    saved = sum(store.size(chosen[n].packed) for n in rungs) - size
    valid = {s: v for s, (v, *_) in tried.items()}
    return told(run.out / NAME, pairs, saved, method=card(make("merge", spec)), one=len(set(made.slots)) == 1, valid=valid)


def attempt(run: Run, names: Sequence[str], chosen: Mapping[str, Rung], bank: Bank,
            spec: Any) -> tuple[float, dict[str, Rung], Merged]:  # fmt: skip
    """Mean validation score of one merge, how each task does under it, and the merge, rounded as it is stored."""
    jobs, heads = [run.jobs[n] for n in names], [chosen[n].head for n in names]
    made = stored(merged(run.features, jobs, heads, bank, spec, seed=run.plan.seed, train=trainings(run, jobs, heads)))
    for job in jobs:
        suits(made, job.name, job.kind.speaks)
    adapted, rungs = made.adapted(run.backbone.f, run.features.tail), {}
    for j, n in enumerate(names[: len(made.slots)]):
        view = made.view(run.features, adapted, run.jobs[n], j)
        rungs[n] = climb(NAME, run.jobs[n], run.features, view, chosen[n].head, chosen[n].post)
    scores = [rung.valid for rung in rungs.values() if rung.valid is not None]
    return fmean(scores) if scores else 0.0, rungs, made


def trainings(run: Run, jobs: Sequence[Job], heads: Sequence[Head]) -> Callable[..., Bank]:
    """What a recipe trains with: dense slots at the sites of the plan's delta, as long as the tasks' own, under their heads."""

    def train(*asked: Any, **more: Any) -> Bank:
        delta, sites = make("delta", "dense"), run.banks[0].sites
        bank = Bank.make(delta, make("gate", "by_task"), sites, seeded(run.plan.seed, "stages"))
        epochs = min(epochs_of(run, job) for job in jobs)
        return stages(Tuning(run), bank, delta.lr, list(zip(jobs, heads, strict=True)), epochs)(*asked, **more)

    return train


@dataclass(frozen=True)
class Tuning:
    """Where a run's recipes train (:class:`anabranch.engine.stages.Place`): slots alone, heads stay."""

    run: Run

    def trainer(self, banks: Sequence[Bank], rates: Sequence[float], **more: Any) -> Trainer:
        learning = {"own", "keys", "gate"}
        return Trainer(self.run.features, banks, rates, self.run.work / "train", self.run.plan.seed, learning=learning, **more)

    def key(self, banks: Sequence[Bank], rates: Sequence[float], name: str, *more: Any) -> str:
        return self.run.key(self.run.jobs[name], [store.bank_card(bank) for bank in banks], list(rates), *more)


def suits(made: Merged, name: str, speaks: bool) -> None:
    """InputError where a task that speaks has a merge that is no change of weights."""
    if speaks and (made.tangent or any(made.after)):
        raise InputError(f"{name} is of kind generate, which answers from a change of f's weights alone")


def stored(made: Merged) -> Merged:
    """The merge with the numbers that a bundle keeps; InputError where they are not finite."""
    bank = made.bank
    trees = [{f"0/{s}": p for s, p in bank.take(i).items()} for i in range(1, len(bank) + 1)]
    trees = [store.unpack(store.pack(tree, "bf16")) for tree in trees]
    kept, after = bank_like(bank, 0, trees[0]), [{n: t.bfloat16().float() for n, t in p.items()} for p in made.after]
    kept.tables["shared"] = bank.tables["shared"].copy()
    kept.tables["shared"].data = kept.tables["shared"].data.bfloat16().float()
    kept.add([store.cut(tree, 0) for tree in trees])
    numbers = [*(table.data for table in kept.tables.values()), *(t for p in after for t in p.values())]
    if not all(t.isfinite().all() for t in numbers if t.is_floating_point()):
        raise InputError("what it made of these tasks is not finite")
    return replace(made, bank=kept, after=after)


def written(out: Path, made: Merged, like: Mapping[str, Any], entries: Mapping[str, Entry],
            spec: Any) -> tuple[dict[str, Any], int]:  # fmt: skip
    """The bundle of tasks under a merge that is as :func:`stored`, and the bytes of its slots and of what corrects features."""
    folder, same = out / "bundle", len(set(made.slots)) == 1
    packed = [store.pack({f"0/{s}": p for s, p in made.bank.take(i).items()}, "bf16") for i in range(1, len(made.bank) + 1)]
    records = {}
    for (n, (record, head, post, corpus)), slot, after in zip(entries.items(), made.slots, made.after, strict=True):
        told = dict(record) | {"rung": "shared" if same else "delta"}
        own = {} if same else packed[slot - 1]
        records[n] = store.save_task(folder, told, own, head, post, corpus, after={m: t.bfloat16() for m, t in after.items()})
    slots = {f"slot/{n}": t for n, t in packed[0].items()}
    bundle = {k: like[k] for k in ("backbone", "dtype")} | {
        "banks": cards(folder, [made.bank], packed[0]), "tasks": records,
        "shared": {"file": store.put(folder, slots), "tasks": list(records)} if same else None,
        "made": dict(like["made"]) | {"merge": spec, "from": list(records)},
    } | ({"tangent": True} if made.tangent else {})  # fmt: skip
    store.save(folder, bundle)
    used = made.slots[:1] if same else made.slots
    beside = 2 * (made.bank.tables["shared"].n + sum(t.numel() for p in made.after for t in p.values()))
    return bundle, sum(store.size(packed[slot - 1]) for slot in used) + beside


def told(out: Path, pairs: Mapping[str, Mapping[str, float | None]], saved: int, **more: Any) -> dict[str, Any]:
    """Writes ``out``/results.json; tasks without test rows do not count in the means."""
    whole = [pair for pair in pairs.values() if None not in pair.values()]
    mean = {k: sum(pair[k] or 0.0 for pair in whole) / max(1, len(whole)) for k in ("single", NAME)}
    found = {"tasks": dict(pairs), "mean_single": mean["single"], "mean_merged": mean[NAME],
             "kilobytes_saved": round(saved / 1000, 1), "bundle": str(out)} | more  # fmt: skip
    write_json(out / "results.json", sealed(found))
    return found
