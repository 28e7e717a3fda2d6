"""What a plan's ``merge`` offers: one model for all tasks beside their own deltas, with what it saves and what it costs.

Of several merges the one with the best mean validation score. The bundle of the run stays as it is; the merged one, with the
tasks' heads, is RUN/merged, a run of its own for ``predict``, ``evaluate`` and ``serve``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Generator, Tensor, nn

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank, Tree
from anabranch.core.fold import changes
from anabranch.core.names import every, find, make
from anabranch.engine import store
from anabranch.engine.cache import sealed, write_json
from anabranch.engine.choose import Rung, climb, tested
from anabranch.engine.job import Head
from anabranch.engine.merging import merged, method_of
from anabranch.engine.passes import Slot
from anabranch.engine.result import bank_like
from anabranch.engine.run import Run
from anabranch.errors import InputError, WorkError
from anabranch.settings import card
from anabranch.task.kind._base import Post
from anabranch.task.plan import Plan

NAME = "merged"
FAULTS = (ArithmeticError, LookupError, RuntimeError, ValueError)  # of a merge's own computing; an InputError is one
Entry = tuple[Mapping[str, Any], Head, Post, Mapping[str, str] | None]  # a task's record, head, settled numbers and corpus


def merges_of(plan: Plan) -> list[Any]:
    """InputError for a merge that makes no single model of finished slots, and for deltas of several entries."""
    specs = plan.merge if isinstance(plan.merge, list) else [plan.merge] * (plan.merge is not None)
    for spec in specs:
        single(spec)
    if specs and isinstance(plan.delta, list) and len(plan.delta) > 1:
        raise InputError(
            "a plan's merge works on one kind of delta: leave one entry under delta, or leave merge out and merge what fit "
            "made: anabranch merge RUN --merge NAME"
        )
    return specs


def single(spec: Any) -> Any:
    """The merge that ``spec`` says; InputError for one that makes no single model of finished slots."""
    combine = make("merge", spec)
    if why := elsewhere(combine):
        fit = [n for n in every("merge") if not elsewhere(find(f"merge.{n}"))]
        name = card(combine)["method"].partition(".")[2]
        raise InputError(
            f"merge {name} {why}; a plan and merge RUN make one model of finished deltas: take one of {', '.join(fit)}. "
            f"{name} runs from Python, in anabranch.engine.lab"
        )
    return combine


def elsewhere(combine: Any) -> str:
    """Why a merge makes no single model of finished slots; empty for one that does."""
    made = signature(method_of(combine))
    form = next(iter(made.parameters))
    if form == "trees":  # one tree, or in some settings one a task, is a model
        return "gives each task a model of its own" if made.return_annotation == list[Tree] else ""
    why = {"train": "trains in several stages", "bank": "keeps a slot for each task in a form of its own"}
    return why.get(form, "")


def weighed(f: nn.Module, bank: Bank) -> None:
    """InputError where a slot of the bank changes activations, which cannot be merged."""
    one = replace(bank, tables={n: t.copy() for n, t in bank.tables.items()})
    one.add([bank.fresh(Generator())])
    changes(f, one, 1)


def offer(run: Run, bundle: Mapping[str, Any], chosen: Mapping[str, Rung]) -> dict[str, Any] | None:
    """Merges the slots of the tasks that answer from their own; None where there are not two, or no merge makes one model.

    A merge that cannot be of these tasks, or fails, is left out with a note: what was trained is not lost over it.

    ``{"method", "tasks": {task: {"single", "merged"}}, "mean_single", "mean_merged", "kilobytes_saved", "valid": {merge: mean
    validation score}, "bundle"}``; single and merged are test scores.
    """
    names = [n for n, rung in chosen.items() if rung.name == "delta"]
    if len(names) < 2:
        run.notes.append(f"nothing was merged: {len(names)} of the tasks answer from a delta of their own")
        return None
    trees = {n: store.unpack(chosen[n].packed) for n in names}
    bank = bank_like(run.banks[0], 0, trees[names[0]])
    bank.add([store.cut(tree, 0) for tree in trees.values()])
    tried: dict[str, tuple[float, dict[str, Rung], Bank]] = {}
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
    _, rungs, one = tried[best]
    for n in names:
        tested(rungs[n], run.jobs[n], run.features, view(run, one, n))
    entries: dict[str, Entry] = {}
    for n in names:
        record = bundle["tasks"][n] | {"valid": rungs[n].valid, "test": rungs[n].test}
        entries[n] = record, chosen[n].head, chosen[n].post, run.tasks[n].corpus
    spec = next(one for one in merges if str(one) == best)
    size = written(run.out / NAME, one, bundle, entries, spec)[1]
    pairs = {n: {"single": chosen[n].test, NAME: rungs[n].test} for n in names}
    saved = sum(store.size(chosen[n].packed) for n in names) - size
    valid = {s: v for s, (v, *_) in tried.items()}
    return told(run.out / NAME, pairs, saved, method=card(make("merge", spec)), valid=valid)


def attempt(run: Run, names: Sequence[str], chosen: Mapping[str, Rung], bank: Bank,
            spec: Any) -> tuple[float, dict[str, Rung], Bank]:  # fmt: skip
    """Mean validation score of one merge, how each task does under it, and its one slot, rounded as it is stored."""
    jobs, heads = [run.jobs[n] for n in names], [chosen[n].head for n in names]
    made = merged(run.features, jobs, heads, bank, spec, seed=run.plan.seed)
    if any(made.after) or len(set(made.slots)) > 1:
        raise InputError("it gives each task a model of its own, and fit offers one for all")
    packed = packed_of(made.bank)
    if not all(t.isfinite().all() for t in packed.values()):
        raise InputError("what it made of these tasks is not finite")
    one = bank_like(made.bank, 0, store.unpack(packed))
    one.add([store.cut(store.unpack(packed), 0)])
    rungs = {n: climb(NAME, run.jobs[n], run.features, view(run, one, n), chosen[n].head, chosen[n].post) for n in names}
    scores = [rung.valid for rung in rungs.values() if rung.valid is not None]
    return fmean(scores) if scores else 0.0, rungs, one


def view(run: Run, one: Bank, name: str) -> Slot:
    return Slot(run.features, Adapted(run.backbone.f, [one], run.features.tail), run.jobs[name].kind.words)


def packed_of(bank: Bank) -> dict[str, Tensor]:
    return store.pack({f"0/{site}": p for site, p in bank.take(1).items()}, "bf16")


def written(out: Path, bank: Bank, like: Mapping[str, Any], entries: Mapping[str, Entry],
            spec: Any) -> tuple[dict[str, Any], int]:  # fmt: skip
    """The bundle of tasks that share the one slot of ``bank``, and the slot's bytes."""
    folder, packed = out / "bundle", packed_of(bank)
    records = {n: store.save_task(folder, dict(record) | {"rung": "shared"}, {}, head, post, corpus)
               for n, (record, head, post, corpus) in entries.items()}  # fmt: skip
    bundle = {k: like[k] for k in ("backbone", "dtype")} | {
        "banks": [store.bank_card(bank)], "tasks": records,
        "shared": {"file": store.put(folder, {f"slot/{n}": t for n, t in packed.items()}), "tasks": list(records)},
        "made": dict(like["made"]) | {"merge": spec, "from": list(records)},
    }  # fmt: skip
    store.save(folder, bundle)
    return bundle, store.size(packed)


def told(out: Path, pairs: Mapping[str, Mapping[str, float | None]], saved: int, **more: Any) -> dict[str, Any]:
    """Writes ``out``/results.json; tasks without test rows do not count in the means."""
    whole = [pair for pair in pairs.values() if None not in pair.values()]
    mean = {k: sum(pair[k] or 0.0 for pair in whole) / max(1, len(whole)) for k in ("single", NAME)}
    found = {"tasks": dict(pairs), "mean_single": mean["single"], "mean_merged": mean[NAME],
             "kilobytes_saved": round(saved / 1000, 1), "bundle": str(out)} | more  # fmt: skip
    write_json(out / "results.json", sealed(found))
    return found
