"""One LoRA for six text tasks of 64 to 256 rows (two each of 256, 128 and 64, some hard, some easy, two about sentiment) whose
losses are weighted by VisATB, from probing runs without each task, against equal weights and weights by the tasks' numbers of
rows: the mean accuracy and the worst task's. Weights are of tasks here, not of tokens."""

from dataclasses import replace
from typing import Any

from anabranch.claims._balance import Weighted, worst

holds = ("visatb > equal", "visatb > proportional", "worst_visatb > worst_equal", "worst_visatb > worst_proportional")
TASKS = ("trec6", "sst2", "snips_intent", "cr", "tweet_emotion", "subj")
SIZES = (256, 256, 128, 128, 64, 64)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    tasks = lab.tasks(TASKS if lab.data else 6, rows=256)
    cut = [replace(t, train=t.train.take(list(range(min(n, len(t.train)))))) for t, n in zip(tasks, SIZES, strict=False)]
    suite = lab.suite(cut)
    rows = {name: len(job.parts["train"]) for name, job in suite.jobs.items()}
    weights = {name: n * len(rows) / sum(rows.values()) for name, n in rows.items()}
    found = {"visatb": suite.shared("lora", balance="visatb").scores(), "equal": suite.shared("lora", balance="mean").scores(),
             "proportional": suite.shared("lora", balance=Weighted(weights)).scores(), "probe": suite.probe()}  # fmt: skip
    return found | {f"worst_{way}": worst(scores) for way, scores in found.items()}
