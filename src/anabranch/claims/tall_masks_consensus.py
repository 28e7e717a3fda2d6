"""One merged vector and a bit per task and number (TALL masks, thresholds chosen on validation rows) against the eight text task
vectors themselves: the share of each task's own score that is kept, and the share of their bytes (bf16). Consensus merging,
task arithmetic and TIES, one model for all tasks, stand beside it. Dense deltas in the last two blocks of MiniLM. Heads are
the labels' names, frozen."""

from typing import Any

from anabranch.claims._merges import best, kept, scaled, stored

holds = ("kept >= 0.99", "bytes < 0.2")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(8)
    single, masked = experts.scores(), experts.merged("tall_masks", few=32)
    (bank,) = experts.filled()
    return {
        "kept": kept(experts.under(masked), single),
        "bytes": {"of all tasks": stored(masked.bank) / stored(bank)},
        "consensus": kept(experts.under(best(experts, scaled(experts, "consensus", (0.3, 0.5, 0.7, 1.0)))), single),
        "task_arithmetic": kept(experts.under(best(experts, scaled(experts, "task_arithmetic", (0.2, 0.3, 0.5, 0.7)))), single),
        "ties": kept(experts.merge_scores("ties"), single),
        "single": single,
    }
