"""A parallel adapter around the MLP against a sequential one behind it (both bottleneck 32, ReLU, scale 4), and the mix and match
adapter (a prefix of 8 at the attention and a parallel adapter of 24) against the better of its parts alone at its size (a prefix
of 32, a parallel adapter of 32): equal trained numbers everywhere, last two blocks, eight text tasks of 256 rows. The part to
beat is chosen by its test scores."""

from typing import Any

from anabranch.claims._deltas import best, one

holds = ("parallel > sequential", "mam >= best_part")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8, rows=256)
    parallel = suite.own({"unified": {"size": 32}})
    behind = suite.own({"unified": {"size": 32, "insertion": "sequential"}, "at": "mlp.out"})
    prefix = suite.own({"prefix": {"tokens": 32}})
    mam = suite.own([{"prefix": {"tokens": 8}}, {"unified": {"size": 24}}])
    around, front = parallel.scores(), prefix.scores()
    return {
        "parallel": around, "sequential": behind.scores(), "mam": mam.scores(), "best_part": dict(best(around, front)),
        "prefix": front, "probe": suite.probe(), "mam_numbers": one(mam.numbers), "parallel_numbers": one(parallel.numbers),
        "sequential_numbers": one(behind.numbers), "prefix_numbers": one(prefix.numbers),
    }  # fmt: skip
