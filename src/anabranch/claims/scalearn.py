"""ScaLearn-Uniform++ (one learned number per source adapter, and the head) against AdapterFusion, a new adapter and the adapters'
average, on four tasks of 100 labels over eight stored text adapters. AdapterFusion's attention has a query matrix and learned
keys, its value matrix is left out. Eight passes each. Last two blocks of MiniLM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.route import Route
from anabranch.core.site import Site
from anabranch.engine.job import apply, joined, leaves_of
from anabranch.engine.passes import encode

holds = ("scalearn >= adapter_fusion", "scalearn > adapter", "numbers < 0.01")
PASSES, BATCH = 8, 32


@dataclass(frozen=True)
class Fusion(Gate):
    """w = softmax((y Q) K / sqrt(d)) of each token, Q [d, d], K [d, k] of a task and site."""

    library: ClassVar[bool] = True

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        d = site.d_out
        return {"Q": torch.eye(d), "K": torch.randn(d, slots, generator=rng) / d**0.5}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        logits = at.y.float() @ own["Q"].float() @ own["K"].float() / at.y.shape[-1] ** 0.5
        return torch.softmax(torch.where(on, logits, -torch.inf), -1)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    tasks = lab.tasks(12)
    library = lab.suite(tasks[:-4]).own("adapter")
    target = lab.suite([t.name for t in tasks[-4:]], rows=100)
    fusion = target.over(library, Fusion(), epochs=PASSES)
    numbers = sum(t.numel() for t in next(iter(fusion.gates.values())).values())
    return {
        "scalearn": {n: scaled(target, library, n, PASSES) for n in target.jobs},
        "adapter_fusion": fusion.scores(),
        "adapter": target.own("adapter", epochs=PASSES).scores(),
        "average": {n: scaled(target, library, n, 0) for n in target.jobs},
        "probe": target.probe(),
        "numbers": {"of AdapterFusion's": len(library.slots) / numbers},
    }


def scaled(suite: Any, library: Any, name: str, passes: int) -> float:
    """A task's test score with one learned scale per slot, all at 1 / k at the start; the head learns beside them."""
    s, job, k = suite, suite.jobs[name], len(library.slots)
    adapted = Adapted(s.f, library.filled(), s.features.tail)
    omega, head = torch.full((k,), 1 / k, requires_grad=True), leaves_of(s.heads[name])
    adam = torch.optim.Adam([{"params": [omega], "lr": 0.02}, {"params": [head["W"], head["b"]], "lr": 2e-3}])

    def routes(rows: Sequence[int]) -> Route:
        return Route.to(torch.arange(1, k + 1).expand(len(rows), -1), w=omega.expand(len(rows), -1))

    def view(units: Sequence[int]) -> Tensor:
        return torch.cat(encode(s.features, adapted, units, [1] * len(units), job.kind.words, routes))

    part = job.parts["train"]
    for _ in range(passes):
        for rows in torch.randperm(len(part), generator=s.lab.rng).split(BATCH):
            units = [part.units[r] for r in rows.tolist()]
            x = joined(job.kind, view([u for row in units for u in row]), [len(row) for row in units], s.features.backbone.d)
            adam.zero_grad()
            job.kind.loss(apply(head, x), part.y[rows], [len(row) for row in units]).mean().backward()
            adam.step()
    with torch.no_grad():
        return float(s.score(name, view, {n: t.detach() for n, t in head.items()}))
