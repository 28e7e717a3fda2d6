"""DOGE with and without its subspace projection against task arithmetic and TIES, over eight text task vectors; the length eta of
DOGE and the scales of the others are those that are best on validation rows. Numbers are shares of each task's own score. DOGE
takes 100 of the paper's 400 steps. Dense deltas in the last two blocks of MiniLM. Heads are the labels' names, frozen."""

from typing import Any

from anabranch.claims._merges import SCALES, best, kept, scaled

holds = ("doge > task_arithmetic", "doge > ties", "unprojected < doge")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(8)
    single = experts.scores()

    def doge(**settings: Any) -> dict[str, float]:
        made = [experts.merged({"doge": {"eta": eta, "steps": 100, **settings}}) for eta in (0.07, 0.2)]
        return kept(experts.under(best(experts, made)), single)

    return {
        "doge": doge(),
        "unprojected": doge(subspace=0),
        "task_arithmetic": kept(experts.under(best(experts, scaled(experts, "task_arithmetic", SCALES))), single),
        "ties": kept(experts.under(best(experts, scaled(experts, "ties", (0.5, 0.8, 1.2, 2.0)))), single),
        "average": kept(experts.merge_scores("mean"), single),
        "single": single,
    }
