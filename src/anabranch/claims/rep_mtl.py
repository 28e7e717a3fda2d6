"""Seven text tasks in three groups that share their texts (domain and intent of clinc150, scenario and intent of hwu64, the
three numbers of emobank), one LoRA a group: equal weights with the two saliency losses of Rep-MTL against equal weights alone,
as the gain over each task's own LoRA relative to its score; and the processor time of a step as a share of PCGrad's."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from anabranch.claims._balance import alike, seconds
from anabranch.task.data import Rows, Task

holds = ("rep_mtl > equal", "step_share < 1.0")
ROWS = 224
GROUPS = (("clinc150_domain", "clinc150_intent"), ("hwu64_scenario", "hwu64_intent"), ("emobank_vad",))
OWN = (("area", "library"),)  # of the docstring suite


def claim(lab: Any) -> dict[str, dict[str, float]]:
    ways: dict[str, Any] = {"rep_mtl": "rep_mtl", "equal": "equal"}
    found: dict[str, dict[str, float]] = {way: {} for way in (*ways, "single", "step_share")}
    for names in GROUPS if lab.data else OWN:
        tasks = alike(lab, names, ROWS)
        suite = lab.suite(targets(tasks[0]) if len(tasks) == 1 else tasks)
        single = suite.own("lora").scores()
        found["single"] |= single
        for way, balance in ways.items():
            found[way] |= gain(suite.shared("lora", balance=balance).scores(), single)
        took = seconds(suite, "lora", {"rep_mtl": "rep_mtl", "pcgrad": "pcgrad"})
        found["step_share"][names[0]] = took["rep_mtl"] / took["pcgrad"]
    return found


def gain(scores: Mapping[str, float], single: Mapping[str, float]) -> dict[str, float]:
    return {n: (scores[n] - single[n]) / max(abs(single[n]), 1e-3) for n in scores}


def targets(task: Task) -> list[Task]:
    """A task of several numbers as one task for each."""

    def column(rows: Rows, k: int) -> Rows:
        return replace(rows, label=[y if y is None else [y[k]] for y in rows.label])

    names = task.targets or [str(k) for k in range(len(task.train.label[0]))]
    return [replace(task, name=f"{task.name}: {name}", targets=[name], metric="pearson", train=column(task.train, k),
                    valid=column(task.valid, k), test=column(task.test, k)) for k, name in enumerate(names)]  # fmt: skip
