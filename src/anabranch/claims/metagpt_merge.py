"""MetaGPT's closed-form coefficients against uniform averaging and against task arithmetic at the scale that is best on
validation rows, over eight text task vectors of uneven length: every other task has a quarter of the training rows. Numbers
are shares of each task's own score; heads are the labels' names, frozen. Dense deltas in the last two blocks of MiniLM."""

from typing import Any

from anabranch.claims._merges import SCALES, best, kept, norms, scaled
from anabranch.engine.lab import EXPERT, ROWS

holds = ("metagpt >= average", "metagpt >= task_arithmetic - 0.02")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    many, few = lab.tasks(8), lab.tasks(8, rows=max(48, ROWS // 4))
    experts = lab.suite([few[i] if i % 2 else task for i, task in enumerate(many)]).named().own(EXPERT)
    single = experts.scores()
    return {
        "metagpt": kept(experts.merge_scores("metagpt"), single),
        "average": kept(experts.merge_scores("mean"), single),
        "task_arithmetic": kept(experts.under(best(experts, scaled(experts, "task_arithmetic", SCALES))), single),
        "ties": kept(experts.merge_scores("ties"), single),
        "zero_shot": kept(experts.suite.probe(), single),
        "single": single,
        "length": dict(zip(single, norms(experts), strict=True)),
    }
