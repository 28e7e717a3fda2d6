"""Hydra (a low-rank branch beside a layer and one behind it, rank 4) against the better of its branches alone, LoRA of rank 6
and sequential LoRA of rank 11, each with the same number of trained numbers to within five per cent, at the attention's and the
MLP's output layers of the last two blocks, on eight text tasks of 512 rows. The branch to beat is chosen by its test scores.
Folded difference: the largest difference of any number of f's last layer, on test rows, between Hydra beside f and folded into
it, in fp32. All three learn at the same rate."""

import copy
from typing import Any

import torch
from torch.func import functional_call

from anabranch.claims._deltas import best, one
from anabranch.core.adapt import Adapted
from anabranch.core.fold import fold
from anabranch.core.route import Route

holds = ("hydra >= best_branch", "folded_difference < 0.00001")
PLACES = ("attention.out", "mlp.out")
RATE = 5e-3
ROWS = 64  # of each task, for the folded difference


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8)
    hydra = suite.own({"hydra": {"rank": 4, "scale": 2.0}, "at": PLACES, "lr": RATE})
    lora = suite.own({"lora": {"rank": 6, "alpha": 12.0}, "at": PLACES, "lr": RATE})
    behind = suite.own({"seq_lora": {"rank": 11, "alpha": 22.0}, "at": PLACES, "lr": RATE})
    beside, last = lora.scores(), behind.scores()
    return {
        "hydra": hydra.scores(), "best_branch": dict(best(beside, last)), "lora": beside, "seq_lora": last,
        "probe": suite.probe(), "folded_difference": difference(hydra), "hydra_numbers": one(hydra.numbers),
        "lora_numbers": one(lora.numbers), "seq_lora_numbers": one(behind.numbers),
    }  # fmt: skip


@torch.no_grad()
def difference(trained: Any) -> dict[str, float]:
    """Per task: the largest difference at real tokens between its slot beside f and folded into f, both in fp32."""
    suite, (bank,), out = trained.suite, trained.filled(), {}
    f = copy.deepcopy(suite.f).float()
    for j, (name, job) in enumerate(suite.jobs.items(), 1):
        units = [row[0] for row in job.parts["test"].units[:ROWS]]
        inputs = suite.features.backbone.inputs([suite.features.tokens[u].ids for u in units])
        beside = Adapted(f, [bank])(inputs, Route.to([j] * len(units))).last_hidden_state
        folded = functional_call(f, fold(f, [(bank, j, 1.0)]), (), inputs).last_hidden_state
        out[name] = float(((beside - folded) * inputs["attention_mask"][..., None]).abs().max())
    return out
