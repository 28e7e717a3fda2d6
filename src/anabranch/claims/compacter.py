"""Compacter (bottleneck 16, four Kronecker products of rank 1, behind the attention and the MLP of the last two blocks) against
a bottleneck adapter of the same width at the same places, which has ten times as many trained numbers, and against an adapter
whose projections have rank 1, with as many numbers as Compacter; eight text tasks of 512 rows. The slow matrices are common to
all sites and tasks: all tasks learn them together in one pass before each trains alone, and they are counted in full. The layer
norms, which the paper trains too, stay as they are."""

from typing import Any

import torch

from anabranch.claims._deltas import one

holds = ("compacter >= adapter - 0.01", "compacter > low_rank_adapter", "share_of_adapter <= 0.1")
PLACES = ("attention.out", "mlp.out")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8)
    entry, plain = ({"compacter": {"size": 16, "n": n}, "at": PLACES} for n in (4, 1))
    compacter = suite.own(entry, common=suite.shared(entry, epochs=1).banks)
    single, _ = suite.banks(plain)  # one product: s t alone, its slow number is a scale
    single[0].tables["shared"].data[1] = torch.ones(1)
    low, adapter = suite.own(plain, common=single), suite.own("adapter")
    numbers = compacter.numbers + compacter.banks[0].tables["shared"].n
    return {
        "compacter": compacter.scores(), "adapter": adapter.scores(), "low_rank_adapter": low.scores(), "probe": suite.probe(),
        "share_of_adapter": one(numbers / adapter.numbers), "compacter_numbers": one(numbers),
        "low_rank_adapter_numbers": one(low.numbers), "adapter_numbers": one(adapter.numbers),
    }  # fmt: skip
