"""TSV-M (a few orthogonalised singular directions of each of eight text task vectors) against TIES, each at the scale that is
best on validation rows; each task keeps its own head. Dense deltas in the last two blocks. Heads are the labels' names,
frozen."""

from typing import Any

holds = ("tsv > ties",)
DIRECTIONS = (0.3, 0.5, 0.7, 1.0, 1.4)
MEAN = (0.3, 0.5, 0.8, 1.0, 1.3, 1.8, 2.5, 4.0)
SUM = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(8)
    return {
        "tsv": scaled(experts),
        "ties": experts.best_scale("ties", MEAN),
        "task_arithmetic": experts.best_scale("task_arithmetic", SUM),
        "single": experts.scores(),
        "zero_shot": experts.suite.probe(),
    }


def scaled(experts: Any) -> dict[str, float]:
    """Test scores at the scale with the highest mean validation score; the merge is linear in it, so made once."""
    made = experts.merged("tsv")
    whole = made.bank.tables["own"].data.clone()

    def at(scale: float, split: str) -> dict[str, float]:
        made.bank.tables["own"].data.copy_(scale * whole)
        found: dict[str, float] = experts.under(made, split)
        return found

    return at(max(DIRECTIONS, key=lambda scale: sum(at(scale, "valid").values())), "test")
