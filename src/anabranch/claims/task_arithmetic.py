"""Adding eight text task vectors with one scale chosen on validation, against averaging them and against f itself; each task
keeps its own head. Dense deltas in the last two blocks. Heads are the labels' names, frozen."""

from typing import Any

holds = ("task_arithmetic > average", "task_arithmetic > base")
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(8)
    return {
        "task_arithmetic": experts.best_scale("task_arithmetic", SCALES),
        "average": experts.merge_scores("mean"),
        "base": experts.merge_scores({"task_arithmetic": {"scale": 1e-9}}),
        "single": experts.scores(),
        "zero_shot": experts.suite.probe(),
    }
