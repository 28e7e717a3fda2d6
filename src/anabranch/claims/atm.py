"""ATM, three rounds of one pass and a merge, against task arithmetic over three passes and TIES, each at its scale that is best
on validation rows, over six text tasks; one model for all. The joint training of one model is the reference. Dense deltas in
the last two blocks of MiniLM. Heads are the labels' names, frozen."""

from typing import Any

from anabranch.claims._merges import SCALES, best, scaled
from anabranch.core.adapt import Adapted
from anabranch.engine.lab import EPOCHS, EXPERT
from anabranch.engine.merging import Merged, one
from anabranch.merge.atm import atm

holds = ("atm > task_arithmetic",)
ROUNDS, STEPS = EPOCHS, (1.0, 2.5)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(6)
    suite = experts.suite

    def alternated(scale: float) -> Merged:
        bank = atm(experts.stages(ROUNDS), Adapted(suite.f, []), list(suite.jobs), rounds=ROUNDS, scale=scale)
        return one(bank, len(suite.jobs))

    return {
        "atm": experts.under(best(experts, [alternated(scale) for scale in STEPS])),
        "task_arithmetic": experts.under(best(experts, scaled(experts, "task_arithmetic", SCALES))),
        "ties": experts.under(best(experts, scaled(experts, "ties", (0.5, 1.0, 2.0)))),
        "joint": suite.shared(EXPERT).scores(),
        "single": experts.scores(),
        "zero_shot": suite.probe(),
    }
