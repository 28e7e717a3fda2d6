"""Offsets at six of the 24 attention heads of the last two blocks (a twelfth of all heads), 32 numbers each: at the heads that
a pass of learned scales ranks highest for the task, against the heads so chosen for another task and against heads drawn at
random, all tuned alike behind the choice; and against LoRA of rank 8 at the query and value layers of the same blocks. Eight
text tasks of 512 rows."""

from typing import Any

import torch

from anabranch.claims._deltas import one

holds = ("chosen > drawn", "chosen > another_tasks", "chosen >= lora - 0.02", "share_of_lora <= 0.05")
HEADS, STATE = 0.25, "0.fixed.uint8"


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite, rng = lab.suite(8), lab.rng
    names = list(suite.jobs)
    first = suite.own({"lofit": {"heads": HEADS, "select": 0.9}}, epochs=1)
    states = [slot[STATE] for slot in first.slots]
    random = [state[torch.randperm(len(state), generator=rng)] for state in states]

    def tuned(states: list[Any]) -> Any:
        begin = {name: {STATE: state} for name, state in zip(names, states, strict=True)}
        return suite.own({"lofit": {"heads": HEADS, "select": 0.0}}, begin=begin)

    chosen, lora = tuned(states), suite.own({"lora": {"rank": 8}})
    numbers = int((states[0] > 0).sum()) * first.banks[0].delta.width
    return {
        "chosen": chosen.scores(), "drawn": tuned(random).scores(), "another_tasks": tuned(states[1:] + states[:1]).scores(),
        "lora": lora.scores(), "probe": suite.probe(), "share_of_lora": one(numbers / lora.numbers),
        "chosen_numbers": one(numbers), "lora_numbers": one(lora.numbers),
    }  # fmt: skip
