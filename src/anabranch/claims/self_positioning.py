"""Self Positioning, learned on 24 probe rows a task, against joint training in which the smaller tasks' rows are repeated to the
same number, on uneven data: 512 rows of classification, 128 of semantic similarity, 64 queries of retrieval. Cost is the rows
that pass through the model in the search, as a share of those in joint training; the tasks' own slots, which the search starts
from, are not in it. Dense deltas in the last two blocks of MiniLM; one model for all, heads of their own."""

from dataclasses import replace
from typing import Any

from anabranch.claims._merges import best, scaled
from anabranch.engine.lab import EPOCHS
from anabranch.task.data import Task

holds = ("self_positioning > joint_resampled", "cost < 0.5")
UNEVEN = {"cr": 512, "sts_open": 128, "xquad_retrieval_en": 64}
PROBE, STEPS = 24, 20


def claim(lab: Any) -> dict[str, dict[str, float]]:
    names = UNEVEN if lab.data else dict(zip(("library", "same", "which"), UNEVEN.values(), strict=True))
    tasks = [lab.tasks([name], rows=rows, test=200)[0] for name, rows in names.items()]
    experts = lab.suite(tasks).own("dense")
    most = max(len(task.train) for task in tasks)
    even = lab.suite([repeated(task, most) for task in tasks])
    made = experts.merged({"self_positioning": {"steps": STEPS}}, few=PROBE, split="train")
    return {
        "self_positioning": experts.under(made),
        "joint_resampled": even.shared("dense").scores(),
        "joint": experts.suite.shared("dense").scores(),
        "average": experts.merge_scores("mean"),
        "task_arithmetic": experts.under(best(experts, scaled(experts, "task_arithmetic", (0.2, 0.4, 0.7)))),
        "single": experts.scores(),
        "cost": {"rows": (STEPS + 1) * PROBE * len(tasks) / (EPOCHS * most * len(tasks))},
    }


def repeated(task: Task, rows: int) -> Task:
    n = len(task.train)
    return replace(task, train=task.train.take([i % n for i in range(rows)]))
