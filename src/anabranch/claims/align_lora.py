"""One LoRA of rank 16 for all tasks with the MMD penalty of Align-LoRA against the same without the penalty, and against four
LoRAs of rank 4 that a softmax of each task's own mixes: equal trained numbers, at the query and value layers of the last two
blocks, eight text tasks of 256 rows that train together. Each of the four mixed LoRAs has both factors of its own, where the row
names heads on one common down-projection."""

from typing import Any

from anabranch.claims._deltas import one

holds = ("align > heads", "align > plain")
PLACES = ("attention.query", "attention.value")
RATE = 5e-3
ALIGN = 0.0025  # at each of four sites: a hundredth of their mean


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8, rows=256)
    entry = {"align_lora": {"rank": 16, "alpha": 32.0, "align": ALIGN}, "at": PLACES, "lr": RATE}
    align = suite.shared(entry)
    plain = suite.shared({"lora": {"rank": 16, "alpha": 32.0}, "at": PLACES, "lr": RATE})
    entry = {"lora": {"rank": 4, "alpha": 32.0}, "at": PLACES, "lr": RATE}  # of which each begins at a quarter
    heads = suite.shared(entry, gate="learned", slots=4)
    return {
        "align": align.scores(), "plain": plain.scores(), "heads": heads.scores(), "probe": suite.probe(),
        "align_numbers": one(align.numbers), "plain_numbers": one(plain.numbers),
        "heads_numbers": one(len(heads.slots) * heads.numbers),
    }  # fmt: skip
