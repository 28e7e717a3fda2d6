"""Four soft tokens a block made from what the row says there (IAPT, bottleneck 22, its projections common to blocks and tasks)
against four static deep tokens a block; over the six tasks together both have the same number of trained numbers to within two
per cent. And the learned rational activation against the best of relu, gelu and tanh in its place, chosen by its test scores.
Last two blocks, six text tasks of 256 rows; all tasks first train one slot, and what is common, together, then each goes on
alone, with the static tokens alike."""

from typing import Any

from anabranch.claims._deltas import best, two_stages

holds = ("generated > static", "generated >= best_fixed")
FIXED = ("relu", "gelu", "tanh")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(6, rows=256)
    generated = two_stages(suite, {"iapt": {"tokens": 4, "size": 22}})
    static = two_stages(suite, {"deep_prompt": {"tokens": 4}})
    fixed = {way: two_stages(suite, {"iapt": {"tokens": 4, "size": 22, "activation": way}}).scores() for way in FIXED}
    numbers = {way: len(suite.jobs) * trained.numbers + trained.banks[0].tables["shared"].n
               for way, trained in (("generated", generated), ("static", static))}  # fmt: skip
    return {
        "generated": generated.scores(), "static": static.scores(), "best_fixed": dict(best(*fixed.values())), **fixed,
        "probe": suite.probe(), **{f"{way}_numbers": {"all tasks": float(n)} for way, n in numbers.items()},
    }  # fmt: skip
