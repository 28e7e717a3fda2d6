"""Changing a bundle: ``add`` and ``remove`` tasks, ``merge`` their deltas, ``export`` one. Other tasks' bits never change."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from os.path import lexists
from pathlib import Path
from sys import modules
from typing import Any

import torch

from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.engine import exchange, store
from anabranch.engine.algebra import merge as merge_slots
from anabranch.engine.algebra import summed
from anabranch.engine.cache import read_sealed, sealed, write_json
from anabranch.engine.features import Features
from anabranch.engine.fit import fit
from anabranch.engine.given import dicts
from anabranch.engine.job import job_of
from anabranch.engine.later import beside, trained_by
from anabranch.engine.merging import Merged, apiece, merged, method_of, needs_of, one
from anabranch.engine.model import Model, load
from anabranch.engine.offer import NAME, finished, stored, suits, written
from anabranch.engine.offer import told as told_of
from anabranch.engine.run import Told
from anabranch.errors import InputError, WorkError, nearest
from anabranch.task.data import Task, load_task
from anabranch.task.metrics import score
from anabranch.task.plan import Plan, read_plan

HELD = ("bundle", "work", "results.json", "report.html", "plan.json")  # of a run
MERGED = {"bundle", "results.json", "report.html"}  # of a merge


def add(run: Path, plan: Any, *, on_error: str = "stop", told: Told | None = None) -> dict[str, Any]:
    """Fits a plan's tasks with the deltas of the bundle and appends them; returns the run's results.

    Where the bundle's tasks trained slots together under a gate, the new ones may also answer through these, which stay as they
    are, with a row of the gate of their own; under ``gate: mhr_mu`` their own slots begin at the mean of these. InputError for a
    task name that the bundle has, and for another backbone, seed, delta or gate than the bundle's. The new tasks are fitted in
    ``RUN/work/add-<hash of the plan>``; a killed ``add`` goes on there.
    """
    run = Path(run)
    folder, bundle = store.open_bundle(run)
    more, made = read_plan(plan), bundle["made"]["plan"]
    known = [n for n in more.tasks if n in bundle["tasks"]]
    if known:
        raise InputError(
            f"the bundle has a task {known[0]!r} already: give the new one another name, or remove the old one first"
        )
    gate = more.gate if more.gate != made["gate"] and beside(make("gate", more.gate), "average") else None
    known = [k for k in ("backbone", "seed", "delta", *["gate"] * (gate is None)) if k in more.model_fields_set]
    if other := [k for k in known if getattr(more, k) != made[k]]:
        raise InputError(f"a bundle has one {other[0]}, here {made[other[0]]}: leave {other[0]} out of the plan")
    first = (bundle.get("shared") or {}).get("bank")
    own = bundle["banks"][:first]  # a gate over slots of its own stays as it is
    before = trained_by(load(run), gate) if first or gate is not None else None
    entries = made["delta"] if isinstance(made["delta"], list) else [made["delta"]]
    whole = more.model_copy(update={k: made[k] for k in ("backbone", "seed")} | {"gate": "by_task", "delta": [
        {b["delta"]["method"].partition(".")[2]: b["delta"]["settings"]}  # as fitted: a budget may have made a rank smaller
        | {k: entry[k] for k in ("at", "lr") if isinstance(entry, dict) and k in entry}
        for entry, b in zip(entries, own, strict=True)
    ]})  # fmt: skip
    part = run / "work" / ("add-" + store.digest(whole.model_dump(mode="json") | {"gate": gate or whole.gate}))
    results = fit(whole, part, resume=True, on_error=on_error, told=told, earlier=before)
    fresh_folder, fresh = store.open_bundle(part)
    old_slots, new_slots = (any(t["rung"] != "probe" for t in b["tasks"].values()) for b in (bundle, fresh))
    mine = fresh["banks"][: (fresh["shared"] or {}).get("bank")]
    if new_slots and [b["layout"] for b in mine] != [b["layout"] for b in own]:
        if old_slots:
            raise InputError("slots of one bundle are of one size: leave kilobytes_per_task out of the plan, or raise it")
        bundle["banks"][: len(own)] = mine
    made["tasks"] |= whole.model_dump(mode="json")["tasks"]
    for name, record in fresh["tasks"].items():
        if record["rung"] == "shared" and before and before.slots:
            bundle["shared"]["tasks"].append(name)
        elif record["rung"] == "shared":  # the new tasks' shared slot becomes an own slot of each, so the old one stays as it is
            head, post = store.parts_of(fresh_folder, record["file"])[1:3]
            packed = store.parts_of(fresh_folder, fresh["shared"]["file"]).slot
            corpus = store.corpus_of(fresh_folder, record["corpus"]) if record.get("corpus") else None
            record = store.save_task(folder, record | {"rung": "delta"}, packed, head, post, corpus)
        for key in ("file", "corpus"):
            if record.get(key) and not (folder / record[key]).exists():
                store.copy(fresh_folder / record[key], folder / record[key])
        bundle["tasks"][name] = record
    store.save(folder, bundle)
    return _retold(run, {n: t for n, t in results["tasks"].items()}, ())


def remove(run: Path, task: str) -> dict[str, Any]:
    """Drops a task from the bundle and the results."""
    folder, bundle = store.open_bundle(Path(run))
    if task not in bundle["tasks"]:
        raise InputError(f"no task {task!r} in {run}{nearest(task, bundle['tasks'])}")
    if len(bundle["tasks"]) == 1:
        raise InputError(f"{task} is the only task of {run}; delete the folder instead")
    del bundle["tasks"][task]
    bundle["made"]["plan"]["tasks"].pop(task, None)
    shared = bundle.get("shared")
    if shared:
        users = [n for n in shared["tasks"] if n != task]
        bundle["shared"] = shared | {"tasks": users} if users else None
        if not users:  # nor does anybody answer through a gate over slots of its own
            bundle["banks"] = bundle["banks"][: shared.get("bank")]
    if "experts" in bundle:
        bundle["experts"]["tasks"].pop(task, None)
    store.save(folder, bundle)
    return _retold(Path(run), {}, (task,))


def merge(run: Path, method: str | dict[str, Any], *, tasks: Sequence[str] | None = None, name: str = NAME,
          told: Told | None = None) -> dict[str, Any]:  # fmt: skip
    """Merges tasks' own slots and measures what comes of it against them on the tasks' test rows.

    Writes ``RUN/<name>/bundle``: the same tasks and heads over one slot, or over one each where the merge gives each task a
    model of its own. ``{"tasks": {task: {"single", "merged"}}, "mean_single", "mean_merged", "kilobytes_saved", "one",
    "bundle"}``. One slot for all is dense; deltas of several entries are merged by their sum. Merges that look at rows read
    those of the run's plan. InputError, before anything is computed or written, for a ``name`` that the run holds something
    else under and for a merge that trains.
    """
    run = Path(run)
    bundle, combine = store.open_bundle(run)[1], finished(method)
    out, chosen, plan = vacant(run, name), chosen_of(bundle, tasks), read_plan(bundle["made"]["plan"])
    looks = asked(combine, chosen, plan)
    data = {n: load_task(n, plan.tasks[n], seed=plan.seed, strict=plan.strict) for n in chosen if n in plan.tasks}
    model = load(run)
    found = stored(together(model, chosen, combine, data if looks else None))
    chosen = chosen[: len(found.slots)]
    for n in chosen:
        suits(found, n, model.served[n].kind.speaks)
    served = [model.served[n] for n in chosen]
    entries = {s.name: (s.record, s.head, s.post, s.corpus) for s in served}
    made, size = written(out, found, model.bundle, entries, method)
    old = sum(store.size(store.parts_of(model.folder, model.tasks[n]["file"]).slot) for n in chosen)
    merged, pairs = Model(out / "bundle", made, model.backbone), {}
    for i, n in enumerate(chosen):
        if told:
            told("merge", i, len(chosen), n)
        if n in data:
            pairs[n] = {"single": model.tasks[n]["test"], "merged": _test(merged, n, data[n])}
    return told_of(out, pairs, old - size, one=len(set(found.slots)) == 1)


def asked(combine: Any, names: Sequence[str], plan: Plan) -> bool:
    """Whether the merge looks at rows of the tasks. InputError where it takes another number of tasks, or rows are wanting."""
    own = method_of(combine)
    kind = modules[own.__module__]
    name, (least, most) = kind.__name__.rpartition(".")[2], vars(kind).get("takes", (2, None))
    if not least <= len(names) <= (most or len(names)):
        count = least if least == most else f"at least {least}"
        raise InputError(f"{name} merges {count} tasks, got {len(names)}: say which, as in --tasks {','.join(names[:least])}")
    looks = bool(needs_of(combine)) or bool({"trees", "look"} & signature(own).parameters.keys())
    if looks and (without := [n for n in names if n not in plan.tasks]):
        raise InputError(
            f"{name} looks at rows of the tasks, and the run's plan names none of {without[0]}: take a merge that asks for none, "
            "such as ties"
        )
    return looks


def vacant(run: Path, name: str) -> Path:
    """The folder that a merge of this name may write: a new one, or an earlier merge's."""
    out = run / name
    if not re.fullmatch(r"\w([\w .+-]{0,58}[\w+-])?", name):
        raise InputError(f"a merge's name is one plain folder name, such as {NAME} or ties-3, got {name!r}")
    if name.lower() in HELD or (lexists(out) and not earlier(out)):
        raise InputError(f"{out} is something else than an earlier merge and stays as it is: take another name, such as {NAME}-2")
    return out


def earlier(out: Path) -> bool:
    """Whether a folder is a merge's and holds nothing beside."""
    try:
        folder, bundle = store.open_bundle(out)
        there = {p.name for p in out.iterdir()}
        return not out.is_symlink() and folder == out / "bundle" and "merge" in bundle["made"] and there <= MERGED
    except (InputError, WorkError, OSError):
        return False


def chosen_of(bundle: Mapping[str, Any], tasks: Sequence[str] | None) -> list[str]:
    """The tasks to merge: those named, each once, or all that have slots of their own."""
    records = bundle["tasks"]
    chosen = [n for n, t in records.items() if t["rung"] == "delta"] if tasks is None else list(tasks)
    for i, n in enumerate(chosen):
        if n not in records:
            raise InputError(f"no task {n!r} in this bundle{nearest(n, records)}")
        if n in chosen[:i]:
            raise InputError(f"{n} is named twice: a task is merged once, with others")
        if records[n]["rung"] != "delta":
            where = "the probe" if records[n]["rung"] == "probe" else "what tasks share"
            raise InputError(f"{n} answers from {where} and has no delta to merge; choose tasks whose rung is delta")
    if len(chosen) < 2:
        raise InputError(f"a merge needs at least two tasks with own deltas, got {len(chosen)}")
    return chosen


def together(model: Model, names: Sequence[str], combine: Any, data: Mapping[str, Task] | None) -> Merged:
    """The merge of the tasks' slots over all banks of the model; ``data`` for merges that look at rows."""
    f, own = model.backbone.f, model.banks[: (model.bundle.get("shared") or {}).get("bank")]
    slots, name = [model.served[n].slot for n in names], method_of(combine).__name__
    features = Features(model.backbone, None, model.tail)
    jobs = [job_of(data[n], features) for n in names] if data else []
    for job, n in zip(jobs, names, strict=bool(data)):
        if job.kind.labels != model.served[n].kind.labels:
            raise InputError(f"task {n}: its rows have other labels than when it was fitted; fit it again, then merge")
    heads = [model.able(n).head for n in names]
    with torch.no_grad():
        tensorwise = next(iter(signature(method_of(combine)).parameters)) == "rows"
        if data is None and tensorwise and len(own) == 1:
            return one(merge_slots(f, [(own[0], slot) for slot in slots], combine), len(names))
        bank = picked(own[0], slots) if len(own) == 1 and not tensorwise else summed(f, own, slots)
        if data is None and tensorwise:
            return one(merge_slots(f, [(bank, j) for j in range(1, len(slots) + 1)], combine), len(names))
        if data is None:
            return apiece(combine(bank, f))
    try:
        return merged(features, jobs, heads, bank, combine, seed=model.bundle["made"]["seed"])
    except InputError as error:
        raise InputError(f"merge {name}: {error}") from None


def picked(bank: Bank, slots: Sequence[int]) -> Bank:
    """These slots of a bank, in their order and in fp32."""
    out = replace(bank, tables={n: table.copy() for n, table in bank.tables.items()}).to(torch.float32)
    for name in out.slot_tables:
        out.tables[name].shrink(list(slots))
    return out


def _test(model: Model, name: str, task: Task) -> float:
    served = model.task(name)
    pred, scores = model.answers([(served, dicts(task.test))])[0]
    real = None if served.kind.words or not served.kind.labels else scores
    return score(served.record["metric"], task.test.label, pred, real, served.record["labels"])


def export(run: Path, task: str, out: Path, form: str = "merged") -> dict[str, Any]:
    """One task as a plain Hugging Face folder with the delta folded in (``merged``), or as a PEFT LoRA (``peft``)."""
    model = load(run)
    served = model.task(task)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty: choose another --out")
    if model.bundle.get("tangent") or served.after:
        raise InputError(
            f"{task} answers from more than a change of f's weights, by merge {model.bundle['made'].get('merge')}:"
            " it is served from its bundle, and no plain checkpoint can hold it"
        )
    if form == "peft":
        if len(model.banks) != 1 or not served.slot:
            raise InputError(f"{task} has no single LoRA slot to export: its rung is {served.record['rung']}")
        exchange.to_peft(model.backbone.f, model.banks[0], served.slot, out, model.backbone.folder)
    else:
        parts = [(bank, served.slot, 1.0) for bank in model.banks] if served.slot else []
        exchange.to_hf(model.backbone, parts, out, served.head, served.record)
    return {"task": task, "form": form, "out": str(out), "files": sorted(p.name for p in out.iterdir())}


def _retold(run: Path, more: dict[str, Any], gone: Sequence[str]) -> dict[str, Any]:
    """results.json with tasks added and dropped."""
    path = run / "results.json"
    results: dict[str, Any] = read_sealed(path) if path.exists() else {"format": 1, "tasks": {}}
    results["tasks"] = {n: t for n, t in (results["tasks"] | more).items() if n not in gone}
    results = sealed(results)
    write_json(path, results)
    return results
