"""All weights and biases of the linear layers in the last two blocks tuned for each task alone, against a linear head on the
frozen sentence encoder and against LoRA of rank 8 at the queries and values there, on eight text tasks of 512 rows. The lower
blocks, the embeddings and the norms stay as they are, which is less than full fine-tuning of the whole model."""

from typing import Any

holds = ("full > probe", "full >= lora - 0.01")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8)
    full, lora = suite.own("dense"), suite.own("lora")
    return {
        "full": full.scores(),
        "lora": lora.scores(),
        "probe": suite.probe(),
        "full_numbers": {"one slot": full.numbers},
        "lora_numbers": {"one slot": lora.numbers},
    }
