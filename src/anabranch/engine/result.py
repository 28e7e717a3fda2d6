"""From rungs to what is kept: measured as stored, chosen, bundled, told."""

import platform
from typing import Any

import torch

from anabranch import __version__
from anabranch.core.bank import Bank
from anabranch.engine import linear, store
from anabranch.engine.backbone import LONGEST
from anabranch.engine.choose import Rung, choose, climb
from anabranch.engine.job import Head, Job
from anabranch.engine.lexical import bm25
from anabranch.engine.run import Run
from anabranch.engine.train import Learner, Trainer
from anabranch.task.metrics import score


def served(run: Run, trainer: Trainer, name: str, job: Job, numbers: dict[str, Any], widest: int = 0) -> Rung:
    """A slot and head as they would be stored (rounded, frozen, small enough), and how they answer.

    ``widest``: numbers of the widest head beside a shared slot, which is stored once and so in one form.
    """
    head = linear.rounded({n[5:]: t for n, t in numbers.items() if n.startswith("head.")})
    tree: dict[str, Any] = {}
    for i, bank in enumerate(run.banks):
        rows = {n.partition(".")[2]: t for n, t in numbers.items() if n.startswith(f"{i}.")}
        tree |= {f"{i}/{site}": bank.delta.freeze(p) for site, p in bank.tree(rows).items()}
    limit, packed = run.plan.budget.kilobytes_per_task, store.pack(tree, "bf16")
    if limit and store.size(packed) + 2 * (widest or numbers_of(head)) > 1000 * limit:
        packed = store.pack(tree, "int8")
        run.notes.append(f"{job.name}: its delta is stored as int8 to stay near {limit:g} kilobytes")
    banks = [bank_like(bank, i, tree) for i, bank in enumerate(run.banks)]
    ready = Trainer(run.features, banks, run.rates, trainer.folder, run.plan.seed)
    whole = store.unpack(packed)
    flat = {f"{i}.{t}": row for i, bank in enumerate(banks) for t, row in bank.flat(cut(whole, i)).items()}
    view = ready.view(Learner(job, flat | {f"head.{n}": t for n, t in head.items()}, 1))
    rung = climb(name, job, run.features, view, head)
    rung.packed = packed
    return rung


def numbers_of(head: Head) -> int:
    return sum(t.numel() for t in head.values())


def cut(tree: dict[str, Any], i: int) -> dict[str, Any]:
    return {site.partition("/")[2]: p for site, p in tree.items() if site.startswith(f"{i}/")}


def bank_like(bank: Bank, i: int, tree: dict[str, Any]) -> Bank:
    """An empty bank whose tables fit a frozen slot."""
    like = Bank(bank.delta, bank.gate, bank.sites, {}, bank.stage, bank.routes)
    like.adopt(cut(tree, i), {}, {})
    like.tables["shared"] = bank.tables["shared"]
    return like


def finish(run: Run) -> tuple[dict[str, Any], dict[str, Rung]]:
    """Chooses a rung per task, and writes the bundle."""
    folder, chosen = run.out / "bundle", {}
    cost = {"probe": 0, "shared": 1, "delta": 2}
    for name, job in run.jobs.items():
        chosen[name] = choose(job, sorted(run.rungs[name], key=lambda r: cost[r.name]), run.plan.seed)
    records = {}
    for name, rung in chosen.items():
        records[name] = store.save_task(folder, record(run, run.jobs[name], rung), rung.packed if rung.name == "delta" else {},
                                        rung.head, rung.post, run.tasks[name].corpus)  # fmt: skip
    slot = run.extra.pop("shared slot", None)
    users = [name for name, rung in chosen.items() if rung.name == "shared"]
    banks = []
    served_banks = {i: next((r.packed for r in chosen.values() if r.packed), {}) for i in range(len(run.banks))}
    for i, bank in enumerate(run.banks):
        tree = store.unpack(served_banks[i])
        banks.append(store.bank_card(bank_like(bank, i, tree) if tree else bank))
    bundle = {
        "backbone": {"id": run.backbone.id, "fingerprint": run.backbone.fingerprint},
        "dtype": str(run.backbone.dtype)[6:],
        "banks": banks,
        "tasks": records,
        "shared": {"file": store.put(folder, {f"slot/{n}": t for n, t in slot.items()}), "tasks": users}
        if slot and users
        else None,
        "made": {
            "anabranch": __version__,
            "torch": torch.__version__,
            "seed": run.plan.seed,
            "plan": run.plan.model_dump(mode="json"),
        },
    }
    store.save(folder, bundle)
    return bundle, chosen


def record(run: Run, job: Job, rung: Rung) -> dict[str, Any]:
    kind, task = job.kind, run.tasks[job.name]
    common = {"common": int(kind.constant(job.parts["train"].y).argmax())} if kind.words else {}
    return {
        "kind": task.kind, "labels": kind.labels, "two": kind.two, "mean": kind.mean, "std": kind.std, "metric": job.metric,
        "rung": rung.name, "valid": rung.valid, "test": rung.test, "max_length": task.max_length or LONGEST,
        "description": task.description,
    } | common  # fmt: skip


def results_of(run: Run, chosen: dict[str, Rung], bundle: dict[str, Any], total: float) -> dict[str, Any]:
    tasks = {}
    slots = bundle["shared"]
    for name, job in run.jobs.items():
        rung, by = chosen[name], {r.name: r for r in run.rungs[name]}
        users = {"delta": 1, "shared": len(slots["tasks"]) if slots else 1}.get(rung.name, 1)
        own = store.size(rung.packed) / users
        tasks[name] = {
            "kind": run.tasks[name].kind, "metric": job.metric, "n_train": len(job.parts["train"]),
            "n_valid": len(job.parts["valid"]), "n_test": len(job.parts["test"]),
            "majority": linear.majority(job, job.parts["test"]),
            "probe": by["probe"].test, "delta": by["delta"].test if "delta" in by else None,
            "shared": by["shared"].test if "shared" in by else None, "chosen": rung.name, "valid": rung.valid, "test": rung.test,
            "kilobytes": round((own + 2 * numbers_of(rung.head)) / 1000, 3),
            "seconds": round(run.own[name], 3), "curve": run.curves.get(name, []), "warnings": run.tasks[name].warnings,
            "counts": run.tasks[name].counts,
            "bm25": lexical(run, job),
            "rungs": {r.name: {"valid": r.valid, "test": r.test} for r in run.rungs[name]},
        }  # fmt: skip
    return {
        "format": 1, "seed": run.plan.seed, "backbone": run.backbone.id, "dtype": str(run.backbone.dtype)[6:],
        "seconds": round(total, 3), "stages": {n: round(s, 3) for n, s in run.took.items()}, "tasks": tasks,
        "machine": run.machine | {"system": platform.platform()},
        "versions": {"anabranch": __version__, "torch": torch.__version__},
        "notes": sorted(set(run.notes)), **run.extra,
    }  # fmt: skip


def lexical(run: Run, job: Job) -> float | None:
    """BM25's test score of a retrieval task, in its main metric; None for other kinds."""
    task = run.tasks[job.name]
    if not task.corpus or not len(task.test):
        return None
    return score(job.metric, task.test.label, bm25(task.test.text, task.corpus))
