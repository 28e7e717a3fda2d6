"""Eight soft tokens in front of each of the last two blocks, each task alone, against a linear head on the frozen sentence
encoder, on eight text tasks of 512 rows. The paper puts prompts in front of every block."""

from typing import Any

holds = ("prompt > probe",)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8)
    trained = suite.own("deep_prompt")
    return {"prompt": trained.scores(), "probe": suite.probe(), "prompt_numbers": {"one slot": trained.numbers}}
