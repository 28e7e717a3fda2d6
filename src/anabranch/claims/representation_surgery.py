"""Task arithmetic over eight text task vectors with and without representation surgery: per task a rank-16 correction of the
pooled vector, fitted without labels to the task's own features on its training texts (at most 500). Half of the gap is the
middle between the plain merge and each task's own slot. Heads stay; heads fitted anew on the merged features are the upper
reference. Dense deltas in the last two blocks of MiniLM. Heads are the labels' names, frozen."""

from typing import Any

from anabranch.claims._merges import SCALES

holds = ("surgery > plain", "surgery >= halfway")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(8)

    def valid(scale: float) -> float:
        return sum(experts.merge_scores({"task_arithmetic": {"scale": scale}}, "valid").values())

    merge = {"task_arithmetic": {"scale": max(SCALES, key=valid)}}
    single, plain = experts.scores(), experts.merge_scores(merge)
    made = experts.merged({"surgery": {"merge": merge, "rank": 16}}, few=500, split="train")
    return {
        "surgery": experts.under(made),
        "plain": plain,
        "halfway": {n: (plain[n] + single[n]) / 2 for n in plain},
        "single": single,
        "zero_shot": experts.suite.probe(),
    }
