"""Learned one-bit masks over all linear layers of the last two blocks against full fine-tuning of those two blocks and against a
linear head on the frozen sentence encoder, on eight text tasks of 512 rows. Share of bytes: one stored mask to the full change
of the same two blocks in fp32. LoRA of as many stored bytes (rank 16, bf16) is there for comparison."""

from typing import Any

from anabranch.claims._deltas import one

holds = ("mask > probe", "mask >= full - 0.02", "share_of_bytes <= 0.033")
RATE = 1e-3  # of 0.0005, 0.001 and 0.002 the best on the first task's validation rows, with masks at the attention's layers
EVERYWHERE = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8)
    mask = suite.own({"mask": {}, "at": EVERYWHERE, "lr": RATE})
    full, lora = suite.own("dense"), suite.own({"lora": {"rank": 16, "alpha": 32.0}, "at": EVERYWHERE})
    return {
        "mask": mask.scores(), "probe": suite.probe(), "full": full.scores(), "lora": lora.scores(),
        "share_of_bytes": one(mask.bytes / (4 * full.numbers)), "mask_bytes": one(mask.bytes), "lora_bytes": one(lora.bytes),
    }  # fmt: skip
