"""ATM, three rounds of one pass and a merge, against task arithmetic over three passes and TIES, each at its scale that is best
on validation rows, over six text tasks; one model for all, a head per task, which in ATM learns on from round to round. The joint
training of one model is the reference. Dense deltas in the last two blocks of MiniLM."""

from typing import Any

from anabranch.claims._merges import SCALES, best, scaled
from anabranch.core.adapt import Adapted
from anabranch.engine.lab import EPOCHS
from anabranch.engine.merging import Merged, one
from anabranch.merge.atm import atm

holds = ("atm > task_arithmetic",)
ROUNDS, STEPS = EPOCHS, (1.0, 2.5)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(6)
    suite = experts.suite

    def alternated(scale: float) -> tuple[Merged, dict[str, Any]]:
        heads = dict(suite.heads)
        bank = atm(experts.stages(ROUNDS, heads), Adapted(suite.f, []), list(suite.jobs), rounds=ROUNDS, scale=scale)
        return one(bank, len(suite.jobs)), heads

    def valid(found: tuple[Merged, dict[str, Any]]) -> float:
        return sum(experts.under(found[0], "valid", found[1]).values())

    made, heads = max((alternated(scale) for scale in STEPS), key=valid)
    return {
        "atm": experts.under(made, heads=heads),
        "task_arithmetic": experts.under(best(experts, scaled(experts, "task_arithmetic", SCALES))),
        "ties": experts.under(best(experts, scaled(experts, "ties", (0.5, 1.0, 2.0)))),
        "joint": suite.shared("dense").scores(),
        "single": experts.scores(),
        "probe": suite.probe(),
    }
