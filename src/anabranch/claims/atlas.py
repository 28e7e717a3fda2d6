"""Learned coefficients of eight stored text task vectors, one for every vector and tensor (aTLAS), against one coefficient for
all and against LoRA of rank 1 (more numbers), on four unseen tasks with eight labels a class, of which two choose settings. All
three begin from a linear head on f's features; the first two fit it anew on theirs. 40 steps. Last two blocks of MiniLM."""

from typing import Any

from anabranch.claims._merges import SCALES, composed, refitted, shots, trees
from anabranch.engine.lab import EXPERT

holds = ("anisotropic > one", "anisotropic > lora")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    tasks = lab.tasks(12)
    library, unseen = lab.suite(tasks[:-4]).named().own(EXPERT), lab.suite([shots(lab, task, 8) for task in tasks[-4:]])
    lora, vectors = unseen.own({"lora": {"rank": 1}}, epochs=15), trees(library)
    numbers = len(vectors) * sum(len(p) for p in vectors[0].values())

    def learned(method: Any) -> dict[str, float]:
        return refitted(unseen, {n: composed(unseen, n, library, method, vectors) for n in unseen.jobs})

    def one(name: str) -> Any:
        found = [composed(unseen, name, library, {"task_arithmetic": {"scale": s / 2}}, vectors) for s in SCALES]
        return min(found, key=lambda made: made[1])

    return {
        "anisotropic": learned({"anisotropic": {"each": True, "steps": 40, "lr": 0.03}}),
        "one": refitted(unseen, {n: one(n) for n in unseen.jobs}),
        "lora": lora.scores(),
        "probe": unseen.probe(),
        "anisotropic_numbers": {"one task": float(numbers)},
        "lora_numbers": {"one task": float(lora.numbers)},
    }
