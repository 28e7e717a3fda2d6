"""Task arithmetic over eight text task vectors stored in 4 bits (one scale a tensor) against the same from full precision, and
from fine-tuned weights stored in 4 bits; each way at its scale that is best on validation rows. RTVQ (a common base of 3 bits,
offsets of 2) and plain 2 bits stand beside it. Dense deltas in the last two blocks of MiniLM, which alone are quantised; the
bar of 0.5 point is on each task's score. Heads are the labels' names, frozen."""

from typing import Any

from anabranch.claims._merges import best, holding, scaled, stored, trees
from anabranch.core.bank import Tree
from anabranch.delta.quantised import coded, restore
from anabranch.engine.merging import dense

holds = ("task_vectors >= full - 0.005", "checkpoints < task_vectors")
SCALES = (0.2, 0.3, 0.4, 0.5, 0.7)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(8)

    def merge(found: Any) -> dict[str, float]:
        return experts.under(best(experts, scaled(found, "task_arithmetic", SCALES)))

    def coarse(**settings: int) -> tuple[Any, int]:
        bank = experts.merged({"tvq": settings}).bank
        return holding(experts, [dense(experts.suite.f, bank, j + 1) for j in range(len(bank))]), stored(bank)

    four, two, residual = coarse(bits=4), coarse(bits=2), coarse(bits=2, base=3)
    whole = stored(experts.filled()[0])
    return {
        "task_vectors": merge(four[0]),
        "full": merge(experts),
        "checkpoints": merge(holding(experts, [checkpoint(experts, tree) for tree in trees(experts)])),
        "two_bits": merge(two[0]),
        "residual": merge(residual[0]),
        "single": experts.scores(),
        "bytes": {"task_vectors": four[1] / whole, "two_bits": two[1] / whole, "residual": residual[1] / whole},
    }


def checkpoint(experts: Any, tree: Tree, bits: int = 4) -> Tree:
    """The task vector that is left where f's weights plus it are stored in so many bits."""
    out: Tree = {}
    for site in experts.banks[0].sites:
        base = dict(zip("Wb", site.weight(experts.suite.f), strict=True))
        tuned = {n: base[n].detach().float() + t for n, t in tree[site.key].items()}
        out[site.key] = {n: restore(*coded(t, bits, 0), t.shape, t.dtype) - base[n].detach().float() for n, t in tuned.items()}
    return out
