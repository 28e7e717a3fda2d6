"""Four experts and eight text tasks that train them together, with a weight for each expert, layer and task: expert outputs made
orthogonal for each token against the same mixture of the same size without that. Experts are bottleneck adapters of width 16 in
the last two blocks; every task has its own head and 512 rows."""

from typing import Any

from anabranch.core.gate import Gate
from anabranch.gate.moore import Moore

holds = ("moore > mixture",)


class Mixture(Moore):
    """The same weights over the outputs as they are."""

    combine = Gate.combine


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8)
    orthogonal, plain = suite.shared("adapter", Moore(slots=4)), suite.shared("adapter", Mixture(slots=4))
    return {
        "moore": orthogonal.scores(),
        "mixture": plain.scores(),
        "shared": suite.shared("adapter").scores(),
        "probe": suite.probe(),
        "moore_numbers": {"one slot": orthogonal.numbers},
        "mixture_numbers": {"one slot": plain.numbers},
    }
