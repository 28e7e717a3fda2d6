"""LoRA of rank 8 at the queries and values of the last two blocks, each task alone, against a linear head on the frozen sentence
encoder, on eight text tasks of 512 rows."""

from typing import Any

holds = ("lora > probe",)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8)
    trained = suite.own("lora")
    return {"lora": trained.scores(), "probe": suite.probe(), "lora_numbers": {"one slot": trained.numbers}}
