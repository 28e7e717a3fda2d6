"""One fit: what it reads, where it writes, what it has so far; and what it will cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from anabranch import __version__
from anabranch.core.bank import Bank
from anabranch.engine import store
from anabranch.engine.backbone import Backbone
from anabranch.engine.cache import digest
from anabranch.engine.choose import Rung
from anabranch.engine.features import Features
from anabranch.engine.job import Job
from anabranch.engine.later import Earlier
from anabranch.engine.profile import seconds
from anabranch.engine.seen import named
from anabranch.engine.train import ROWS
from anabranch.task.data import Task
from anabranch.task.plan import Plan

Told = Callable[[str, int, int, str], None]
EPOCHS, STEPS = 3, 60  # passes over a task's rows; small tasks take more, up to this many steps


@dataclass
class Run:
    """One fit in progress."""

    plan: Plan
    out: Path
    told: Told
    machine: dict[str, Any]
    tasks: dict[str, Task]
    backbone: Backbone
    features: Features
    banks: list[Bank]
    rates: list[float]
    gated: list[Bank] = field(default_factory=list)  # of the shared rung: the same banks, unless the gate routes over many slots
    earlier: Earlier | None = None  # what the tasks of the bundle trained together, to which these are added
    jobs: dict[str, Job] = field(default_factory=dict)
    rungs: dict[str, list[Rung]] = field(default_factory=dict)
    few: dict[str, Rung] = field(default_factory=dict)  # what answers for tasks of few rows, chosen without a validation split
    own_slots: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # each task's best numbers
    took: dict[str, float] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)  # seconds of each task
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.out / "work"

    def key(self, job: Job, *more: Any) -> str:
        """A hash of all that a task's result depends on."""
        rows = {split: [part.units and [[self.features.tokens[u].ids for u in row] for row in part.units], str(part.labels)]
                for split, part in job.parts.items()}  # fmt: skip
        cards = [store.bank_card(bank) for bank in self.banks]
        others = [[[self.features.tokens[u].ids for u in row] for row in self.features.texts[of]]
                  for bank in self.banks if (of := named(bank.delta, self.features.texts)) is not None]  # fmt: skip
        facts = [
            job.name,
            job.metric,
            vars(job.kind),
            digest(rows),
            self.plan.seed,
            self.backbone.fingerprint,
            str(self.backbone.dtype),
        ]
        return digest(__version__, facts, cards, self.rates, list(more), *others)


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

    def once(tokens: float, passes: float) -> float:
        return seconds(tokens, above, d, run.machine, passes)

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
