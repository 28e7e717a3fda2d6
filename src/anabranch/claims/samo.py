"""One LoRA for six text tasks of 256 rows, three of them with 30 % wrong labels: SAMO around the mean of the gradients against
the mean alone, and against sharpness-aware training of each task by itself (flat-MTL around the mean), in accuracy and in
processor time of a step. Tasks have rows of their own here, so all perturbed gradients of the latter come from one pass."""

from typing import Any

from anabranch.claims._balance import noisy, seconds

holds = ("samo > plain", "samo >= per_task - 0.01", "samo_seconds < per_task_seconds")
RHO = 0.1


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite([noisy(lab, task) if i % 2 else task for i, task in enumerate(lab.tasks(6, rows=256))])
    samo, each = {"samo": {"inner": "mean", "rho": RHO}}, {"flat_mtl": {"inner": "mean", "rho": RHO}}
    took = seconds(suite, "lora", {"samo": samo, "per_task": each, "plain": "mean"})
    return {
        "samo": suite.shared("lora", balance=samo).scores(),
        "plain": suite.shared("lora", balance="mean").scores(),
        "per_task": suite.shared("lora", balance=each).scores(),
        "probe": suite.probe(),
    } | {f"{way}_seconds": {"a step": s} for way, s in took.items()}
