"""``fit``: from a plan to a bundle, up a ladder of rungs.

look (read, count) -> features (frozen f once) -> probe (a linear head per task) -> relate (task x task) -> delta (own slot
per task) -> share (one slot for all) -> choose. Every stage keeps its results under a hash of what made them, so that a
killed run goes on where it was and ends in the same bits.
"""

import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from anabranch import __version__
from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.core.site import Site, find
from anabranch.engine import linear, store
from anabranch.engine.backbone import Backbone
from anabranch.engine.cache import digest, read_json, read_tensors, write_json, write_tensors
from anabranch.engine.choose import Rung, choose, climb
from anabranch.engine.features import Features
from anabranch.engine.job import Head, Job, job_of
from anabranch.engine.model import backbone_of
from anabranch.engine.profile import profile, seconds
from anabranch.engine.share import relate, share
from anabranch.engine.train import ROWS, Learner, Trainer, seeded
from anabranch.errors import InputError
from anabranch.task.data import Task, load_task
from anabranch.task.plan import STAGES, Plan, read_plan

Told = Callable[[str, int, int, str], None]
EPOCHS, STEPS = 3, 60  # passes over a task's rows; small tasks take more, up to this many steps


def quiet(stage: str, done: int, of: int, text: str) -> None:
    """Tells nobody."""


@dataclass
class Run:
    """One fit: what it reads, where it writes, and what it has so far."""

    plan: Plan
    out: Path
    told: Told
    machine: dict[str, Any]
    tasks: dict[str, Task]
    backbone: Backbone
    features: Features
    banks: list[Bank]
    rates: list[float]
    jobs: dict[str, Job] = field(default_factory=dict)
    rungs: dict[str, list[Rung]] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)  # seconds of each task
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.out / "work"

    def key(self, job: Job, *more: Any) -> str:
        """A hash of all that a task's result depends on."""
        rows = {split: [part.units and [[self.features.tokens[u].ids for u in row] for row in part.units], str(part.labels)]
                for split, part in job.parts.items()}  # fmt: skip
        cards = [store.bank_card(bank) for bank in self.banks]
        facts = [
            job.name,
            job.metric,
            vars(job.kind),
            digest(rows),
            self.plan.seed,
            self.backbone.fingerprint,
            str(self.backbone.dtype),
        ]
        return digest(__version__, facts, cards, self.rates, list(more))


def fit(
    plan: Any, out: Path | str, *, resume: bool = False, overwrite: bool = False, dry: bool = False,
    on_error: str = "stop", device: str | None = None, told: Told | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fits a plan (path, folder, dict or :class:`Plan`) into the folder ``out``; returns what results.json holds.

    ``dry``: returns rows, minutes and megabytes, and writes nothing. InputError for a used ``out`` without ``resume`` or
    ``overwrite``, and for a ``resume`` with another plan (with the keys that differ).
    """
    begun, out, told = time.perf_counter(), Path(out), told or quiet
    plan = read_plan(plan)
    if not plan.tasks:
        raise InputError("the plan has no tasks: add one under tasks:, for example  intent: {data: data/intent}")
    stages = stages_of(plan)
    if not dry:
        claim(out, plan, resume, overwrite)
    tasks = {}
    for i, (name, spec) in enumerate(plan.tasks.items()):
        told("look", i, len(plan.tasks), name)
        tasks[name] = load_task(name, spec, seed=plan.seed, strict=plan.strict, on_error=on_error)  # type: ignore[arg-type]
    machine = profile()
    longest = max((t.max_length or 128 for t in tasks.values()), default=128)
    backbone = backbone_of(plan.backbone, machine["dtype"], longest)
    banks, rates = banks_of(plan, backbone)
    depth = max(0, min((s.depth for bank in banks for s in bank.sites), default=0))
    depth = 0 if any(task.kind == "generate" for task in tasks.values()) else depth  # speaking needs all of f
    run = Run(plan, out, told, machine, tasks, backbone, Features(backbone, out / "work" / "features", depth), banks, rates)
    run.jobs = {name: job_of(task, run.features) for name, task in tasks.items()}
    if dry:
        return estimate(run, stages)
    if not (run.work / "profile.json").exists():
        write_json(run.work / "profile.json", machine)
    run.took["look"] = time.perf_counter() - begun
    for name, stage in (("features", features), ("probe", probe), ("relate", related), ("delta", delta), ("share", shared)):
        if name in stages:
            start = time.perf_counter()
            stage(run)
            run.took[name] = time.perf_counter() - start
    start = time.perf_counter()
    bundle, chosen = finish(run)
    run.took["choose"] = time.perf_counter() - start
    results = results_of(run, chosen, bundle, time.perf_counter() - begun)
    write_json(out / "results.json", results)
    told("choose", 1, 1, "done")
    return results


def stages_of(plan: Plan) -> list[str]:
    asked = list(plan.stages or STAGES)
    if "probe" not in asked or "features" not in asked:
        raise InputError("stages need features and probe: every later rung starts from the probe's head")
    return asked


def claim(out: Path, plan: Plan, resume: bool, overwrite: bool) -> None:
    """Makes ``out`` this plan's run, or says why it cannot be."""
    said = plan.model_dump(mode="json")
    used = out.exists() and any(out.iterdir()) if not out.exists() or out.is_dir() else True
    if used and out.is_file():
        raise InputError(f"{out} is a file; --out needs a folder")
    if used and overwrite:
        if not (out / "plan.json").exists():
            raise InputError(f"{out} holds other files than a run: choose another --out, or empty it yourself")
        for part in ("results.json", "report.html", "bundle", "work", "plan.json"):
            shutil.rmtree(out / part) if (out / part).is_dir() else (out / part).unlink(missing_ok=True)
    elif used and not resume:
        raise InputError(f"{out} is not empty: add --resume to go on, --overwrite to start anew, or choose another --out")
    elif used and (out / "plan.json").exists():
        old = read_json(out / "plan.json")
        differ = sorted(k for k in {*old, *said} if old.get(k) != said.get(k))
        if differ:
            raise InputError(
                f"{out} was made by another plan, which differs in {', '.join(differ)}: use that plan, or --overwrite"
            )
    write_json(out / "plan.json", said)


def banks_of(plan: Plan, backbone: Backbone) -> tuple[list[Bank], list[float]]:
    """Empty banks for the plan's delta entries; without ``at``, a delta of blocks sits in the upper half of f."""
    entries = plan.delta if isinstance(plan.delta, list) else [plan.delta]
    gate = make("gate", plan.gate)
    if not gate.plain:
        raise InputError(
            f"fit gives every task its own slot, which is gate by_task; {plan.gate!r} routes over a library of slots"
        )
    banks, rates = [], []
    for i, entry in enumerate(entries):
        entry = {entry: {}} if isinstance(entry, str) else dict(entry)
        at, lr = entry.pop("at", None), entry.pop("lr", None)
        made = make("delta", entry)
        sites = find(backbone.f, at) if at else upper(backbone, made.at)
        banks.append(Bank.make(made, gate, sites, seeded(plan.seed, "bank", i)))
        rates.append(lr or made.lr)
    return banks, rates


def upper(backbone: Backbone, at: Any) -> list[Site]:
    sites = find(backbone.f, at)
    inside = [s for s in sites if s.depth >= backbone.blocks // 2 and s.depth < backbone.blocks]
    return inside or sites


def epochs_of(run: Run, job: Job) -> int:
    """Passes over a task's rows: fixed before training, from the size of the task and the budget."""
    steps = max(1, -(-len(job.parts["train"]) // ROWS))
    wanted = max(EPOCHS, min(40, -(-STEPS // steps)))
    minutes = run.plan.budget.minutes
    if minutes is None:
        return wanted
    rest = 0.6 * minutes - costs(run)["features"] / 60
    once = costs(run)["delta"] / 60 / EPOCHS
    return max(1, min(wanted, int(rest / once))) if once > 0 else wanted


def costs(run: Run) -> dict[str, float]:
    """Expected seconds of the stages, from counts of tokens and the machine's speed."""
    f, d, blocks = run.features, run.backbone.d, run.backbone.blocks
    above = blocks - f.tail
    every = sum(f.length(u) for u in range(len(f.tokens)))
    part = {
        s: sum(f.length(u) for job in run.jobs.values() for row in job.parts[s].units for u in row)
        for s in ("train", "valid", "test")
    }
    once = lambda tokens, passes: seconds(tokens, above, d, run.machine, passes)  # noqa: E731
    training = once(part["train"], 3) * EPOCHS + once(part["valid"], 1) * EPOCHS + once(part["test"], 1)
    return {
        "features": seconds(every, blocks, d, run.machine),
        "probe": 0.3 * len(run.jobs),
        "delta": training,
        "share": training,
    }


def estimate(run: Run, stages: Sequence[str]) -> dict[str, Any]:
    f = run.features
    cost = {n: s for n, s in costs(run).items() if n in stages}
    stored = sum(f.length(u) for u in range(len(f.tokens))) * run.backbone.d * run.backbone.dtype.itemsize * (f.tail > 0)
    numbers = sum(bank.tables["own"].n for bank in run.banks)
    rows = {n: {s: len(p) for s, p in job.parts.items()} for n, job in run.jobs.items()}
    kinds = {n: {"kind": run.tasks[n].kind, "metric": job.metric, "kilobytes": numbers * 2 / 1000} for n, job in run.jobs.items()}
    return {
        "rows": sum(sum(r.values()) for r in rows.values()),
        "minutes": round(sum(cost.values()) / 60, 2),
        "megabytes": round((min(stored, f.disk) + 2 * numbers * len(rows)) / 1e6, 1),
        "tasks": {n: rows[n] | kinds[n] for n in rows},
        "stages": {n: round(s / 60, 3) for n, s in cost.items()},
    }


def features(run: Run) -> None:
    run.features.run(lambda done, of: run.told("features", done, of, "texts"))


def probe(run: Run) -> None:
    """A linear head per task on f's own features, and how it answers."""
    for i, (name, job) in enumerate(run.jobs.items()):
        run.told("probe", i, len(run.jobs), name)
        start = time.perf_counter()
        saved = run.work / "probe" / f"{digest(name)}-{run.key(job)}.safetensors"
        if saved.exists():
            head = read_tensors(saved)[0]
        else:
            head, strength = linear.probe(job, run.features)
            write_tensors(saved, head, {"strength": strength})
        run.rungs[name] = [climb("probe", job, run.features, linear.frozen(run.features, job), head)]
        run.own[name] = time.perf_counter() - start


def learnable(run: Run) -> list[tuple[Job, Head]]:
    return [(job, run.rungs[name][0].head) for name, job in run.jobs.items()]


def trainer_of(run: Run) -> Trainer:
    return Trainer(run.features, run.banks, run.rates, run.work / "train", run.plan.seed)


def related(run: Run) -> None:
    if len(run.jobs) > 1:
        matrix = relate(trainer_of(run), learnable(run))
        run.extra["related"] = {"measure": "cosine of the tasks' gradients of one fresh shared slot",
                                "tasks": list(run.jobs), "matrix": [[round(v, 4) for v in row] for row in matrix.tolist()]}  # fmt: skip


def delta(run: Run) -> None:
    """An own slot per task; what is measured is what would be stored."""
    trainer = trainer_of(run)
    todo, before = [], time.perf_counter()
    for job, head in learnable(run):
        epochs = epochs_of(run, job)
        todo.append((job, head, epochs, run.key(job, epochs)))
    count = 0
    for learner in trainer.run(
        todo, lambda m: run.told("delta", count, len(todo), f"{m.job.name}, pass {m.epoch} of {m.epochs}")
    ):
        job, count = learner.job, count + 1
        run.rungs[job.name].append(served(run, trainer, "delta", job, learner.best, learner))
        run.curves[job.name] = learner.curve
        run.own[job.name] += (time.perf_counter() - before) / max(1, len(todo))


def served(run: Run, trainer: Trainer, name: str, job: Job, numbers: dict[str, Any], learner: Learner | None = None) -> Rung:
    """A slot and head as they would be stored (rounded, frozen, small enough), and how they answer."""
    head = linear.rounded({n[5:]: t for n, t in numbers.items() if n.startswith("head.")})
    tree = {}
    for i, bank in enumerate(run.banks):
        rows = {n.partition(".")[2]: t for n, t in numbers.items() if n.startswith(f"{i}.")}
        tree |= {f"{i}/{site}": bank.delta.freeze(p) for site, p in bank.tree(rows).items()}
    form = "bf16"
    limit = run.plan.budget.kilobytes_per_task
    if limit and store.size(store.pack(tree, form)) + 2 * sum(t.numel() for t in head.values()) > 1000 * limit:
        form = "int8"
    packed = store.pack(tree, form)
    banks = [bank_like(bank, i, tree) for i, bank in enumerate(run.banks)]
    ready = Trainer(run.features, banks, run.rates, trainer.folder, run.plan.seed)
    whole = store.unpack(packed)
    flat = {f"{i}.{t}": row for i, bank in enumerate(banks) for t, row in bank.flat(cut(whole, i)).items()}
    view = ready.view(Learner(job, flat | {f"head.{n}": t for n, t in head.items()}, 1))
    rung = climb(name, job, run.features, view, head)
    rung.packed = packed
    return rung


def cut(tree: dict[str, Any], i: int) -> dict[str, Any]:
    return {site.partition("/")[2]: p for site, p in tree.items() if site.startswith(f"{i}/")}


def bank_like(bank: Bank, i: int, tree: dict[str, Any]) -> Bank:
    """An empty bank whose tables fit a frozen slot."""
    like = Bank(bank.delta, bank.gate, bank.sites, {}, bank.stage, bank.routes)
    like.adopt(cut(tree, i), {}, {})
    like.tables["shared"] = bank.tables["shared"]
    return like


def shared(run: Run) -> None:
    """One slot that all tasks train together, with the plan's balance."""
    if len(run.jobs) < 2:
        return
    from anabranch.core.balance import lift

    trainer, pairs = trainer_of(run), learnable(run)
    balance = lift(make("balance", run.plan.balance or "mean"))
    epochs = min(epochs_of(run, job) for job, _ in pairs)
    key = digest([run.key(job, epochs) for job, _ in pairs], str(run.plan.balance))
    theta, learners = share(trainer, pairs, epochs, balance, key, lambda done, of: run.told("share", done, of, "passes"))
    for learner in learners:
        rung = served(run, trainer, "shared", learner.job, theta | learner.theta)
        run.rungs[learner.job.name].append(rung)
        run.extra["shared slot"] = rung.packed


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
        "backbone": {"id": run.backbone.id, "fingerprint": run.backbone.fingerprint, "longest": run.backbone.longest},
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
        "rung": rung.name, "valid": rung.valid, "test": rung.test, "max_length": task.max_length, "description": task.description,
    } | common  # fmt: skip


def results_of(run: Run, chosen: dict[str, Rung], bundle: dict[str, Any], total: float) -> dict[str, Any]:
    tasks = {}
    slots = bundle["shared"]
    for name, job in run.jobs.items():
        rung, by = chosen[name], {r.name: r for r in run.rungs[name]}
        own = store.size(rung.packed) if rung.name == "delta" else 0
        own += store.size(rung.packed) / len(slots["tasks"]) if rung.name == "shared" else 0
        tasks[name] = {
            "kind": run.tasks[name].kind, "metric": job.metric, "n_train": len(job.parts["train"]),
            "n_valid": len(job.parts["valid"]), "n_test": len(job.parts["test"]),
            "majority": linear.majority(job, job.parts["test"]),
            "probe": by["probe"].test, "delta": by["delta"].test if "delta" in by else None,
            "shared": by["shared"].test if "shared" in by else None, "chosen": rung.name, "valid": rung.valid, "test": rung.test,
            "kilobytes": round((own + 2 * sum(t.numel() for t in rung.head.values())) / 1000, 3),
            "seconds": round(run.own[name], 3), "curve": run.curves.get(name, []), "warnings": run.tasks[name].warnings,
            "counts": run.tasks[name].counts,
            "rungs": {r.name: {"valid": r.valid, "test": r.test} for r in run.rungs[name]},
        }  # fmt: skip
    return {
        "format": 1, "seed": run.plan.seed, "backbone": run.backbone.id, "dtype": str(run.backbone.dtype)[6:],
        "seconds": round(total, 3), "stages": {n: round(s, 3) for n, s in run.took.items()}, "tasks": tasks,
        "machine": run.machine | {"system": platform.platform()}, "versions": {"anabranch": __version__, "torch": torch.__version__},
        **run.extra,
    }  # fmt: skip
