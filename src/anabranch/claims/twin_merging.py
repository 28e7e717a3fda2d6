"""Twin-Merging, whose router sees no task ids, against task arithmetic at its best scale and TIES, over eight text task vectors:
one stream of all test rows, of which each is answered by the shared expert plus exclusive experts of rank 16 as the router
shares them out, and scored with its own task's head. The router learns from 48 validation rows a task. Numbers are shares of
each task's own score; halfway is the middle between task arithmetic and 1. Dense deltas in the last two blocks of MiniLM.
Heads are the labels' names, frozen."""

from typing import Any

import torch
from torch import Tensor

from anabranch.claims._merges import SCALES, best, kept, scaled
from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.route import Route
from anabranch.engine.passes import Slot, encode
from anabranch.gate.twin_router import fit, scores

holds = ("twin > halfway", "twin > ties")
ROWS = 48


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(8)
    single = experts.scores()
    shared = best(experts, scaled(experts, "task_arithmetic", SCALES))
    twin = experts.merged({"twin": {"rank": 16, "scale": 0.3}}).bank
    static = kept(experts.under(shared), single)
    found, hits = routed(experts, twin, experts.merged({"task_arithmetic": {"scale": 0.3}}).bank)
    return {
        "twin": kept(found, single),
        "halfway": {n: (s + 1) / 2 for n, s in static.items()},
        "task_arithmetic": static,
        "ties": kept(experts.under(best(experts, scaled(experts, "ties", (0.5, 1.0, 2.0)))), single),
        "average": kept(experts.merge_scores("mean"), single),
        "single": single,
        "weight_of_own_expert": hits,
    }


def routed(experts: Any, twin: Bank, shared: Bank) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of the routed model, and the mean weight that a task's rows give to the task's own expert."""
    s, t = experts.suite, len(experts.slots)
    alone = Slot(s.features, Adapted(s.f, [shared], s.features.tail), False)
    d, jobs = s.features.backbone.d, list(s.jobs.values())
    rows = [[u for row in job.parts["valid"].units[:ROWS] for u in row] for job in jobs]
    with torch.no_grad():
        z = [alone(units)[:, :d] for units in rows]
        owners = torch.cat([torch.full((len(part),), j) for j, part in enumerate(z)])
        router = fit(torch.cat(z), owners, t, s.lab.rng)
    adapted, out, hits = Adapted(s.f, [twin], s.features.tail), dict[str, float](), dict[str, float]()
    for j, (name, job) in enumerate(s.jobs.items()):
        seen: list[Tensor] = []

        def view(units: Any, job: Any = job, seen: list[Tensor] = seen) -> Tensor:
            w = torch.softmax(scores(router, alone(units)[:, :d]), -1)
            seen.append(w)

            def routes(rows: Any) -> Route:
                return Route.to(torch.arange(1, t + 1).expand(len(rows), -1), w=w[[r - 1 for r in rows]])

            return torch.cat(encode(s.features, adapted, units, list(range(1, len(units) + 1)), job.kind.words, routes))

        with torch.no_grad():
            out[name] = s.score(name, view, experts.heads[name])
        hits[name] = float(torch.cat(seen)[:, j].mean())
    return out, hits
