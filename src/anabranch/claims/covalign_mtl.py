"""Five intent tasks, of which clinc150's domain and intent share texts and hwu64's scenario and intent do. One's frozen
features are rotated: a shared layer of 64 units with a linear map before it for each task (the delta alignment), against the
same layer without the maps and against a layer as wide as those numbers allow, all over f's frozen features. And with 60 % wrong
labels in one task: one LoRA under the SVD's weights against uniform weights, on the four clean tasks."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from anabranch.claims._balance import alike, noisy
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.engine.passes import seeded

holds = ("aligned > plain", "aligned > wide", "svd > uniform")
GROUPS = (("clinc150_domain", "clinc150_intent"), ("hwu64_scenario", "hwu64_intent"), ("snips_intent",))
OWN = (("area", "library"),)  # of the docstring suite
ROTATED, WRONG, UNITS, STEPS, EVERY = 1, 2, 64, 200, 20


def claim(lab: Any) -> dict[str, dict[str, float]]:
    tasks = [task for names in (GROUPS if lab.data else OWN) for task in alike(lab, names, 256)]
    wrong = WRONG % len(tasks)
    suite = lab.suite(tasks)
    data = {name: [rows_of(suite, name, split) for split in ("train", "valid", "test")] for name in suite.jobs}
    name, d = list(data)[ROTATED], suite.features.backbone.d
    q = torch.linalg.qr(torch.randn(d, d, generator=seeded(lab.seed, "rotation")))[0]
    data[name] = [(x @ q, y) for x, y in data[name]]
    out = {"aligned": hard_shared(lab, data, UNITS, True), "plain": hard_shared(lab, data, UNITS, False),
           "wide": hard_shared(lab, data, UNITS + len(data) * d, False)}  # fmt: skip
    bad = lab.suite([noisy(lab, task, 0.6) if i == wrong else task for i, task in enumerate(tasks)])
    clean = [task.name for i, task in enumerate(tasks) if i != wrong]
    for way, balance in (("svd", "covalign_mtl"), ("uniform", "mean"), ("uncertainty", "uncertainty")):
        scores = bad.shared("lora", balance=balance).scores()
        out[way] = {n: scores[n] for n in clean}
    return out | {"probe": suite.probe()}


def rows_of(suite: Any, name: str, split: str) -> tuple[Tensor, Tensor]:
    """Features [n, d], centred and scaled as the heads see them, and classes [n]."""
    job, head, d = suite.jobs[name], suite.heads[name], suite.features.backbone.d
    part = job.parts[split]
    x = suite.features.vectors[[row[0] for row in part.units]][:, :d]
    return (x - head["mean"][:d]) * head["scale"][:d], part.y


def hard_shared(lab: Any, data: Any, units: int, aligned: bool) -> dict[str, float]:
    """relu((x + x R_t) B) A_t, all trained by Adam on whole batches; test accuracy at the step of the least validation loss."""
    rng, d, delta = seeded(lab.seed, "layer", units), len(next(iter(data.values()))[0][0][0]), make("delta", "alignment")
    base = torch.nn.Parameter(torch.randn(d, units, generator=rng) / d**0.5)
    heads = {n: torch.nn.Parameter(torch.randn(units, classes(data[n]), generator=rng) / units**0.5) for n in data}
    maps = {n: torch.nn.Parameter(torch.zeros(d, d)) for n in data} if aligned else {}
    adam = torch.optim.Adam([base, *heads.values(), *maps.values()], 2e-3)

    def out(name: str, k: int) -> tuple[Tensor, Tensor]:
        x, y = data[name][k]
        if aligned:
            x = x + delta.apply({"r": maps[name]}, At(x, x, torch.ones(len(x), dtype=torch.bool)))
        return torch.relu(x @ base) @ heads[name], y

    least, best = float("inf"), dict[str, float]()
    for i in range(STEPS + 1):
        if i % EVERY == 0:
            with torch.no_grad():
                loss = sum(float(cross_entropy(*out(n, 1))) for n in data)
                if loss < least:
                    found = {n: out(n, 2) for n in data}
                    least, best = loss, {n: float((o.argmax(1) == y).float().mean()) for n, (o, y) in found.items()}
        adam.zero_grad()
        torch.stack([cross_entropy(*out(n, 0)) for n in data]).mean().backward()
        adam.step()
    return best


def classes(parts: Any) -> int:
    return 1 + int(max(y.max() for _, y in parts if len(y)))
