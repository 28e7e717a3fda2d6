"""``fit``: from a plan to a bundle, up a ladder of rungs.

look (read, count) -> features (frozen f once) -> probe (a linear head per task) -> relate (task x task) -> delta (own slot
per task) -> share (one slot for all) -> choose. Every stage keeps its results under a hash of what made them, so that a
killed run goes on where it was and ends in the same bits.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import get_num_threads

from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.core.site import Site, find
from anabranch.engine import fewshot, linear
from anabranch.engine.backbone import Backbone, backbone_of
from anabranch.engine.cache import digest, read_json, read_sealed, recall, sealed, write_json, write_tensors
from anabranch.engine.choose import Rung, climb, tested
from anabranch.engine.features import Features
from anabranch.engine.job import Job, job_of, kind_of
from anabranch.engine.joint import common_of, learnable, shared, slots_of, trainer_of
from anabranch.engine.later import Earlier
from anabranch.engine.offer import NAME, merges_of, offer, weighed
from anabranch.engine.passes import seeded
from anabranch.engine.profile import profile
from anabranch.engine.rehearse import rehearsed
from anabranch.engine.result import finish, results_of, served
from anabranch.engine.run import Run, Told, epochs_of, estimate
from anabranch.engine.seen import delta_for, named
from anabranch.engine.share import fitting, relate
from anabranch.engine.train import TOKENS, Learner
from anabranch.engine.workers import drained, each
from anabranch.errors import InputError, WorkError
from anabranch.report import html
from anabranch.settings import card
from anabranch.task.data import Task, load_task
from anabranch.task.plan import STAGES, Plan, read_plan

PATIENCE = 1 / 3  # of a task's passes may go by without a lower validation loss


def quiet(stage: str, done: int, of: int, text: str) -> None:
    """Tells nobody."""


def fit(
    plan: Any, out: Path | str, *, resume: bool = False, overwrite: bool = False, dry: bool = False,
    on_error: str = "stop", device: str | None = None, told: Told | None = None, earlier: Earlier | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fits a plan (path, folder, dict or :class:`Plan`) into the folder ``out``; returns what results.json holds.

    ``earlier``: what other tasks trained together, which these may use; no slot is shared among these then.
    ``dry``: returns rows, minutes and megabytes, and writes nothing. InputError for a used ``out`` without ``resume`` or
    ``overwrite``, and for a ``resume`` with another plan (with the keys that differ).
    """
    begun, out, told = time.perf_counter(), Path(out), told or quiet
    plan = read_plan(plan)
    if not plan.tasks:
        raise InputError("the plan has no tasks: add one under tasks:, for example  intent: {data: data/intent}")
    stages, merges = stages_of(plan), merges_of(plan)
    make("balance", plan.balance or "mean")  # InputError before anything is written
    if not dry:
        free(out, plan, resume, overwrite)
    tasks = {}
    for i, (name, spec) in enumerate(plan.tasks.items()):
        told("look", i, len(plan.tasks), name)
        tasks[name] = load_task(name, spec, seed=plan.seed, strict=plan.strict, on_error=on_error)  # type: ignore[arg-type]
    machine = profile() if overwrite else machine_of(out / "work" / "profile.json")
    backbone = backbone_of(plan.backbone, machine["dtype"])
    notes: list[str] = []
    banks, rates = banks_of(plan, backbone, tasks, notes)
    if merges:
        weighed(backbone.f, banks[0])
    depth = max(0, min((s.depth for bank in banks for s in bank.sites), default=0))
    store = Features(backbone, out / "work" / "features", depth)
    gated = earlier.banks if earlier and earlier.slots else gated_of(plan, banks, list(tasks))
    run = Run(plan, out, told, machine, tasks, backbone, store, banks, rates, gated, notes=notes, earlier=earlier)
    run.jobs = {name: job_of(task, run.features) for name, task in tasks.items()}
    if plan.balance is not None and "share" in stages:
        notes += balanced(run)
    if dry:
        return estimate(run, stages)
    claim(out, plan, overwrite)  # now, so that a plan or data that cannot be leave what was there as it was
    write_json(run.work / "profile.json", sealed(machine))
    run.took["look"] = time.perf_counter() - begun
    todo = [("features", features), ("probe", probe), ("relate", related), ("delta", delta), ("share", shared)]
    if any(bank.tables["shared"].n for bank in banks):
        todo[3:] = todo[:2:-1]  # what all slots share is learned first, with all tasks
    for name, stage in todo:
        if name in stages:
            start = time.perf_counter()
            stage(run)
            run.took[name] = time.perf_counter() - start
    start = time.perf_counter()
    bundle, chosen = finish(run)
    if merges and (offered := offer(run, bundle, chosen)):
        run.extra["merged"] = offered
    run.took["choose"] = time.perf_counter() - start
    results = sealed(results_of(run, chosen, bundle, time.perf_counter() - begun))
    write_json(out / "results.json", results)
    html.write(out)
    told("choose", 1, 1, "done")
    return results


def machine_of(kept: Path) -> dict[str, Any]:
    """The machine as this run first found it: a resumed run computes in the same type and plans the same passes."""
    try:
        return read_sealed(kept)
    except (FileNotFoundError, WorkError):
        return profile()


def stages_of(plan: Plan) -> list[str]:
    asked = list(plan.stages or STAGES)
    if "probe" not in asked or "features" not in asked:
        raise InputError("stages need features and probe: every later rung starts from the probe's head")
    return asked


def free(out: Path, plan: Plan, resume: bool, overwrite: bool) -> None:
    """InputError where ``out`` cannot be this plan's run."""
    said = plan.model_dump(mode="json")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out needs a folder")
    there = [p.name for p in out.iterdir() if p.suffix != ".part"] if out.exists() else []
    if there and not (resume or overwrite):
        raise InputError(f"{out} is not empty: add --resume to go on, --overwrite to start anew, or choose another --out")
    if there and "plan.json" not in there:
        raise InputError(f"{out} holds other files than a run: choose another --out, or empty it yourself")
    if there and not overwrite:
        old = read_json(out / "plan.json")
        differ = sorted(k for k in {*old, *said} if old.get(k) != said.get(k))
        if differ:
            raise InputError(
                f"{out} was made by another plan, which differs in {', '.join(differ)}: use that plan, or --overwrite"
            )
        if "results.json" in there and (changed := read_sealed(out / "results.json")["tasks"].keys() ^ plan.tasks.keys()):
            raise InputError(f"{out} is finished and was changed since (tasks {', '.join(sorted(changed))}): nothing to resume")


def claim(out: Path, plan: Plan, overwrite: bool) -> None:
    """Makes ``out`` this plan's run, without what another one left."""
    for part in ("results.json", "report.html", "bundle", "work", "plan.json", NAME) if overwrite else ():
        shutil.rmtree(out / part) if (out / part).is_dir() else (out / part).unlink(missing_ok=True)
    for stray in out.rglob(".*.part"):  # half-written by a run that was killed, perhaps before it had a plan
        stray.unlink()
    write_json(out / "plan.json", plan.model_dump(mode="json"))


def banks_of(plan: Plan, backbone: Backbone, tasks: dict[str, Task], notes: list[str]) -> tuple[list[Bank], list[float]]:
    """Empty banks for the plan's delta entries; without ``at``, a delta of blocks sits in the upper two thirds of f.

    A rank is halved until a slot and the widest head fit ``kilobytes_per_task`` in bf16.
    """
    entries = plan.delta if isinstance(plan.delta, list) else [plan.delta]
    gate = make("gate", "by_task")
    limit = plan.budget.kilobytes_per_task
    widths = [(kind.width(backbone.d), 1 + kind.wide()) for kind in map(kind_of, tasks.values())]
    head = max(2 * (outputs + (outputs + 2) * size * parts) for (outputs, size), parts in widths)
    banks, rates = [], []
    for i, entry in enumerate(entries):
        entry = {entry: {}} if isinstance(entry, str) else dict(entry)
        at, lr = entry.pop("at", None), entry.pop("lr", None)
        made = delta_for(backbone.f, entry)
        named(made, tasks)
        sites = find(backbone.f, at) if at else upper(backbone, made.at)
        bank = Bank.make(made, gate, sites, seeded(plan.seed, "bank", i))
        rank = getattr(made, "rank", 1)
        while limit and rank > 1 and 2 * bank.tables["own"].n + head > 1000 * limit / len(entries):
            rank //= 2
            made = replace(made, rank=rank)
            bank = Bank.make(made, gate, sites, seeded(plan.seed, "bank", i))
        if rank != getattr(make("delta", entry), "rank", 1):
            notes.append(f"rank {rank} instead of {make('delta', entry).rank}, so that a task fits {limit:g} kilobytes")
        banks.append(bank)
        rates.append(lr or made.lr)
    return banks, rates


def balanced(run: Run) -> list[str]:
    """Notes on a balance that will do nothing; InputError for one that cannot be of these tasks."""
    if run.earlier:
        return [f"balance {run.plan.balance!r} does nothing: later tasks take slots as they are, and share none among themselves"]
    gate, jobs = make("gate", run.plan.gate), list(run.jobs.values())
    if gate.library:
        return [f"balance {run.plan.balance!r} does nothing: gate {run.plan.gate!r} takes slots that were trained alone"]
    shares = not gate.plain or any(bank.tables["shared"].n for bank in run.banks)
    return rehearsed(run.plan.balance, jobs, gate.groups(list(run.jobs)), lambda: trainer_of(run, run.gated), shares)


def gated_of(plan: Plan, banks: list[Bank], tasks: Sequence[str]) -> list[Bank]:
    """The banks of the shared rung: one slot for all tasks, or the plan's gate over slots of its own or over a library."""
    gate = make("gate", plan.gate)
    gate.groups(tasks)  # says what is wrong with them
    if gate.plain:
        return banks
    routes = len(tasks) if gate.library else slots_of(gate)
    if (gate.top or 1) > routes:
        name = card(gate)["method"].partition(".")[2]
        raise InputError(
            f"gate {name} keeps {gate.top} slots a row, there are {routes}: write gate: {{{name}: {{top: {routes}}}}}, or fewer"
        )
    made = (Bank.make(b.delta, gate, b.sites, seeded(plan.seed, "gated", i), None, b.stage, routes) for i, b in enumerate(banks))
    return [fitting(bank) for bank in made]


def upper(backbone: Backbone, at: Any) -> list[Site]:
    sites = find(backbone.f, at)
    inside = [s for s in sites if s.depth >= -(-backbone.blocks // 3) and s.depth < backbone.blocks]
    return inside or sites


def features(run: Run) -> None:
    run.features.run(lambda done, of: run.told("features", done, of, "texts"))


def probe(run: Run) -> None:
    """A linear head per task on f's own features, and how it answers."""

    def one(job: Job) -> tuple[Rung, float]:
        start = time.perf_counter()
        saved = run.work / "probe" / f"{digest(job.name)}-{run.key(job)}.safetensors"
        kept = recall(saved)
        head, how = kept or linear.probe(job, run.features)
        if kept is None:
            write_tensors(saved, head, how)
        view = linear.frozen(run.features, job)
        rung = tested(climb("probe", job, run.features, view, head), job, run.features, view)
        rung.how = how
        return rung, time.perf_counter() - start

    jobs = list(run.jobs.values())
    for i, (job, (rung, seconds)) in enumerate(zip(jobs, each(jobs, one), strict=True), 1):
        run.rungs[job.name], run.own[job.name] = [rung], seconds
        run.told("probe", i, len(jobs), job.name)


def related(run: Run) -> None:
    if len(run.jobs) > 1:
        matrix = relate(trainer_of(run), learnable(run))
        rows = [[round(v, 4) for v in row] for row in matrix.tolist()]
        measure = "cosine of the tasks' gradients of one fresh shared slot"
        run.extra["related"] = {"measure": measure, "tasks": list(run.jobs), "matrix": rows}


def delta(run: Run) -> None:
    """An own slot per task; what is measured is what would be stored."""
    todo, before, scarce = [], time.perf_counter(), [job for job in run.jobs.values() if fewshot.few(job)]

    def told(m: Learner) -> None:
        run.told("delta", len(run.curves), len(run.jobs), f"{m.job.name}, pass {m.epoch} of {m.epochs}")

    if scarce:
        fewshot.trained(run, scarce, told)
    for job, head in learnable(run):
        epochs = epochs_of(run, job)
        if job not in scarce:
            todo.append((job, head, epochs, run.key(job, epochs, common_of(run))))

    begin = {job.name: run.earlier.own for job in run.jobs.values()} if run.earlier else {}

    def worker() -> Any:
        trainer = trainer_of(run, patience=PATIENCE, tokens=TOKENS // get_num_threads(), begin=begin)
        return partial(trainer.run, progress=told)

    for learner in drained(todo, worker):
        name = learner.job.name
        run.own_slots[name], run.curves[name] = learner.best, learner.curve
        if "loss" not in learner.curve[-1]:
            run.notes.append(f"{name}: training diverged in pass {learner.epoch}, what was best before it counts; lower lr")
    jobs = [job for job, *_ in todo]
    found = each(jobs, lambda job: served(run, run.banks, "delta", job, [run.own_slots[job.name]], run.own_slots[job.name]))
    for job, rung in zip(jobs, found, strict=True):
        run.rungs[job.name].append(rung)
    for job in run.jobs.values():
        run.own[job.name] += (time.perf_counter() - before) / len(run.jobs)
