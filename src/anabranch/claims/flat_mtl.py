"""One LoRA for four text tasks, two of 256 rows with 30 % wrong labels, one with 64 rows, six passes: flat-MTL around PCGrad,
CAGrad and IMTL-G against each of these alone, in accuracy, and in how much the tasks' mean loss on 200 test rows rises under
random noise on the LoRA (a fifth of the length of the plain one, the same two draws and their opposites for both)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anabranch.claims._balance import noisy
from anabranch.engine.linear import outputs
from anabranch.engine.merging import taken

holds = ("flat > plain", "flat_rise < plain_rise")
INNER = ("pcgrad", "cagrad", "imtl_g")
RHO, PASSES, DRAWS, ROWS = 0.1, 6, 2, 200
NEEDED = {"cagrad": {"c": 0.5}}


def claim(lab: Any) -> dict[str, dict[str, float]]:
    tasks = lab.tasks(["trec6", "sst2", "tweet_emotion", "snips_intent"] if lab.data else 4, rows=256)
    few = replace(tasks[2], train=tasks[2].train.take(list(range(min(64, len(tasks[2].train))))))
    suite = lab.suite([noisy(lab, tasks[0]), noisy(lab, tasks[1]), few, tasks[3]])
    found: dict[str, dict[str, float]] = {way: {} for way in ("flat", "plain", "flat_rise", "plain_rise")}
    for name in INNER:
        inner = {name: NEEDED.get(name, {})}
        plain = suite.shared("lora", balance=inner, epochs=PASSES)
        flat = suite.shared("lora", balance={"flat_mtl": {"inner": inner, "rho": RHO}}, epochs=PASSES)
        own, rng = plain.slots[0]["0.own"], lab.rng
        drawn = torch.stack([torch.randn(own.shape, generator=rng) for _ in range(DRAWS)])
        noise = 0.2 * own.norm() * drawn / drawn.norm(dim=1, keepdim=True)
        for way, model in (("flat", flat), ("plain", plain)):
            found[way] |= {f"{name}, {task}": score for task, score in model.scores().items()}
            moved = [loss(model, n) for n in (*noise, *-noise)]  # opposites, so that a slope at this place is no rise
            found[f"{way}_rise"][name] = sum(moved) / len(moved) - loss(model, 0 * own)
    return found | {"probe": suite.probe()}


def loss(model: Any, noise: Tensor) -> float:
    """Mean over tasks of the mean test loss under the moved slot."""
    moved = replace(model, slots=[model.slots[0] | {"0.own": model.slots[0]["0.own"] + noise}])
    banks, s, total = moved.filled(), model.suite, 0.0
    for name, job in s.jobs.items():
        part = taken(job.parts["test"], range(min(ROWS, len(job.parts["test"]))))
        out, counts = outputs(job, part, s.features, moved.view(name, banks), moved.heads[name])
        total += float(job.kind.loss(out, part.y, counts).mean()) / len(s.jobs)
    return total
