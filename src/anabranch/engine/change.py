"""Changing a bundle: ``add`` and ``remove`` tasks, ``merge`` their deltas, ``export`` one. Other tasks' bits never change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.engine import exchange, store
from anabranch.engine.algebra import merge as merge_slots
from anabranch.engine.cache import read_sealed, sealed, write_json
from anabranch.engine.fit import fit
from anabranch.engine.model import Model, load
from anabranch.engine.offer import told as told_of
from anabranch.engine.offer import written
from anabranch.engine.run import Told
from anabranch.errors import InputError, nearest
from anabranch.task.plan import read_plan


def add(run: Path, plan: Any, *, on_error: str = "stop", told: Told | None = None) -> dict[str, Any]:
    """Fits a plan's tasks with the deltas of the bundle and appends them; returns the run's results.

    InputError for a task name that the bundle has, and for another backbone, seed, delta or gate than the bundle's. The new
    tasks are fitted in ``RUN/work/add-<hash of the plan>``; a killed ``add`` goes on there.
    """
    run = Path(run)
    folder, bundle = store.open_bundle(run)
    more, made = read_plan(plan), bundle["made"]["plan"]
    known = [n for n in more.tasks if n in bundle["tasks"]]
    if known:
        raise InputError(
            f"the bundle has a task {known[0]!r} already: give the new one another name, or remove the old one first"
        )
    other = [k for k in ("backbone", "seed", "delta", "gate") if k in more.model_fields_set and getattr(more, k) != made[k]]
    if other:
        raise InputError(f"a bundle has one {other[0]}, here {made[other[0]]}: leave {other[0]} out of the plan")
    own = bundle["banks"][: (bundle.get("shared") or {}).get("bank")]  # a gate over slots of its own stays as it is
    entries = made["delta"] if isinstance(made["delta"], list) else [made["delta"]]
    whole = more.model_copy(update={k: made[k] for k in ("backbone", "seed")} | {"gate": "by_task", "delta": [
        {b["delta"]["method"].partition(".")[2]: b["delta"]["settings"]}  # as fitted: a budget may have made a rank smaller
        | {k: entry[k] for k in ("at", "lr") if isinstance(entry, dict) and k in entry}
        for entry, b in zip(entries, own, strict=True)
    ]})  # fmt: skip
    part = run / "work" / ("add-" + store.digest(whole.model_dump(mode="json")))
    results = fit(whole, part, resume=True, on_error=on_error, told=told)
    fresh_folder, fresh = store.open_bundle(part)
    old_slots, new_slots = (any(t["rung"] != "probe" for t in b["tasks"].values()) for b in (bundle, fresh))
    if new_slots and [b["layout"] for b in fresh["banks"]] != [b["layout"] for b in own]:
        if old_slots:
            raise InputError("slots of one bundle are of one size: leave kilobytes_per_task out of the plan, or raise it")
        bundle["banks"][: len(own)] = fresh["banks"]
    made["tasks"] |= whole.model_dump(mode="json")["tasks"]
    for name, record in fresh["tasks"].items():
        if record["rung"] == "shared":  # the new tasks' shared slot becomes an own slot of each, so the old one stays as it is
            packed, head, post, _ = store.parts_of(fresh_folder, record["file"])
            packed = store.parts_of(fresh_folder, fresh["shared"]["file"])[0]
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
    store.save(folder, bundle)
    return _retold(Path(run), {}, (task,))


def merge(run: Path, method: str | dict[str, Any], *, tasks: Sequence[str] | None = None, name: str = "merged",
          told: Told | None = None) -> dict[str, Any]:  # fmt: skip
    """Merges tasks' own slots into one and measures it against them on the tasks' test rows.

    Writes ``RUN/<name>/bundle``: the same tasks and heads, one slot. ``{"tasks": {task: {"single", "merged"}},
    "mean_single", "mean_merged", "kilobytes_saved", "bundle"}``. Deltas that change weights become one dense slot.
    """
    run = Path(run)
    model = load(run)
    combine = make("merge", method)
    chosen = list(tasks or [n for n, t in model.tasks.items() if t["rung"] == "delta"])
    slots = {n: model.task(n).slot for n in chosen}
    without = [n for n, slot in slots.items() if not slot]
    if without:
        raise InputError(f"{without[0]} answers from the probe and has no delta to merge; choose tasks whose rung is delta")
    if len(chosen) < 2:
        raise InputError(f"a merge needs at least two tasks with own deltas, got {len(chosen)}")
    backbone = model.backbone
    bank = together(model, slots, combine)
    entries = {n: (s.record, s.head, s.post, s.corpus) for n, s in model.served.items() if n in chosen}
    bundle, size = written(run / name, bank, model.bundle, {n: entries[n] for n in chosen}, method)
    old = sum(store.size(store.parts_of(model.folder, model.tasks[n]["file"])[0]) for n in chosen)
    merged = Model(run / name / "bundle", bundle, backbone)
    found, plan = {}, read_plan(model.bundle["made"]["plan"])
    for i, n in enumerate(chosen):
        if told:
            told("merge", i, len(chosen), n)
        if n not in plan.tasks:
            continue
        single, both = model.tasks[n]["test"], _test(merged, n, plan)
        found[n] = {"single": single, "merged": both}
    return told_of(run / name, found, old - size)


def together(model: Model, slots: dict[str, int], combine: Any) -> Bank:
    """One dense slot from the tasks' slots over all banks of the model."""
    parts = [(bank, slot) for bank in model.banks for slot in slots.values()]
    if len(model.banks) > 1:
        raise InputError("merge works on bundles with one kind of delta; fit with one delta entry")
    with torch.no_grad():
        return merge_slots(model.backbone.f, parts, combine)


def _test(model: Model, name: str, plan: Any) -> float:
    from anabranch.engine.given import dicts
    from anabranch.task.data import load_task
    from anabranch.task.metrics import score

    served, task = model.task(name), load_task(name, plan.tasks[name], seed=plan.seed, strict=plan.strict)
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
