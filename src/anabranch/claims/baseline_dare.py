"""Dropping half of each of eight text task vectors at random and rescaling the rest changes their sum little: within 0.01 of task
arithmetic on both sides, each at the scale that is best on validation rows. Dense deltas in the last two blocks; each task
keeps its own head. The paper drops 90 % and more, from far larger models. Heads are the labels' names, frozen."""

from typing import Any

holds = ("dare >= task_arithmetic - 0.01", "dare <= task_arithmetic + 0.01")
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(8)
    return {
        "dare": experts.best_scale("dare", SCALES, density=0.5, seed=lab.seed),
        "task_arithmetic": experts.best_scale("task_arithmetic", SCALES),
        "dare_tenth": experts.best_scale("dare", SCALES, density=0.1, seed=lab.seed),
        "single": experts.scores(),
        "zero_shot": experts.suite.probe(),
    }
