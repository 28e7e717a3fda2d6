"""Forty soft tokens with a low-rank update of the word embeddings (DePT, rates 0.01 and 0.002) against a hundred soft tokens
(rate 0.01) and against DePT with one rate for both parts, the geometric mean of the two. Equal trained numbers to within one
per cent, through all of f, four text tasks of 256 rows. Share of time: CPU seconds of DePT's forward passes over a hundred test
texts to those of the hundred tokens, the least of three tries of each."""

import time
from typing import Any

import torch

from anabranch.claims._deltas import one

holds = ("dept >= prompt", "share_of_time <= 0.85", "dept > one_rate")
TASKS = ("trec6", "snips_intent", "hwu64_scenario", "clinc150_domain")  # of --data: short texts, where 100 tokens cost most
RATES = (0.01, 0.002)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(TASKS if lab.data else 4, rows=256, blocks=None)
    update: dict[str, Any] = {"embedding_lowrank": {"rank": 51, "length": 64}, "at": "embeddings.word_embeddings"}
    parts: tuple[dict[str, Any], ...] = ({"prompt": {"tokens": 40}}, update)
    prompt = suite.own({"prompt": {"tokens": 100}, "lr": RATES[0]})
    dept = suite.own([part | {"lr": rate} for part, rate in zip(parts, RATES, strict=True)])
    same = suite.own([part | {"lr": (RATES[0] * RATES[1]) ** 0.5} for part in parts])
    return {
        "dept": dept.scores(), "prompt": prompt.scores(), "one_rate": same.scores(), "probe": suite.probe(),
        "share_of_time": share_of_time(dept, prompt), "dept_numbers": one(dept.numbers), "prompt_numbers": one(prompt.numbers),
    }  # fmt: skip


@torch.no_grad()
def share_of_time(ours: Any, theirs: Any) -> dict[str, float]:
    out = {}
    for name, job in ours.suite.jobs.items():
        units = [row[0] for row in job.parts["test"].units[:100]]
        views, least = [trained.view(name) for trained in (ours, theirs)], [float("inf")] * 2
        for _ in range(3):
            for i, view in enumerate(views):
                begun = time.process_time()
                view(units)
                least[i] = min(least[i], time.process_time() - begun)
        out[name] = least[0] / least[1]
    return out
