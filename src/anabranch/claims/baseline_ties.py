"""TIES (trim to 20 %, elect signs, mean of what agrees) against adding up eight text task vectors, each at the scale that is best
on validation rows; each task keeps its own head. Dense deltas in the last two blocks, trimmed layer by layer. Heads are the
labels' names, frozen."""

from typing import Any

holds = ("ties >= task_arithmetic",)
SUM = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
MEAN = (0.3, 0.5, 0.8, 1.0, 1.3, 1.8, 2.5, 4.0)  # a mean of those that agree, so scales above 1 are in range


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(8)
    return {
        "ties": experts.best_scale("ties", MEAN),
        "task_arithmetic": experts.best_scale("task_arithmetic", SUM),
        "average": experts.merge_scores("mean"),
        "single": experts.scores(),
        "zero_shot": experts.suite.probe(),
    }
