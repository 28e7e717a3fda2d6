"""Bottleneck adapters of width 16 behind both sublayers of the last two blocks, each task alone, against a linear head on the
frozen sentence encoder and, as the paper reports it for BERT, close to tuning all weights there: within 0.01. Eight text tasks
of 512 rows."""

from typing import Any

holds = ("adapter > probe", "adapter >= full - 0.01")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8)
    adapter, full = suite.own("adapter"), suite.own("dense")
    return {
        "adapter": adapter.scores(),
        "full": full.scores(),
        "probe": suite.probe(),
        "adapter_numbers": {"one slot": adapter.numbers},
        "full_numbers": {"one slot": full.numbers},
    }
