"""Task vectors tuned and run in the tangent space of f against ordinary ones, four text tasks of 192 rows, three passes each: the
share of its own task's score that their sum keeps, at the scale that is best on validation rows, and the disentanglement error
of each pair at weights of 1 (share of 100 test rows whose answer the other vector changes). Last two blocks of MiniLM."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from anabranch.claims._merges import kept
from anabranch.core.adapt import Adapted
from anabranch.core.route import Route
from anabranch.engine.job import Head, apply, joined, leaves_of
from anabranch.engine.passes import encode, seeded
from anabranch.merge.tangent import disentanglement, linearised

holds = ("linear > nonlinear", "linear_error < nonlinear_error")
PASSES, BATCH, LR, SCALES = 3, 32, 2e-4, (0.3, 0.5, 0.7, 1.0)
View = Callable[[Sequence[int]], Tensor]


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite, out = lab.suite(4, rows=192, test=200), dict[str, dict[str, float]]()
    for way, tangent in (("nonlinear", False), ("linear", True)):
        tuned = {name: tune(suite, name, tangent) for name in suite.jobs}
        heads, run = (
            {n: head for n, (_, head) in tuned.items()},
            runner(suite, torch.stack([d for d, _ in tuned.values()]), tangent),
        )
        with torch.no_grad():
            single = {n: suite.score(n, run(one), heads[n]) for n, one in zip(heads, torch.eye(len(heads)), strict=True)}
            scale = max(
                SCALES, key=lambda s: sum(suite.score(n, run(torch.full((len(heads),), s)), heads[n], "valid") for n in heads)
            )
            merged = {n: suite.score(n, run(torch.full((len(heads),), scale)), heads[n]) for n in heads}
            out |= {way: kept(merged, single), f"{way}_error": errors(suite, run, heads), f"{way}_single": single}
    return out | {"probe": suite.probe()}


def runner(suite: Any, rows: Tensor, tangent: bool) -> Callable[[Tensor], View]:
    """Task vectors [k, n] and their weights [k] -> features of units of f with their weighted sum."""
    (bank,), _ = suite.banks("dense")
    adapted, k = Adapted(suite.f, [bank], suite.features.tail), len(rows)
    adapted.sources[0]["own"] = torch.cat([torch.zeros(1, rows.shape[1]), rows])

    def straight(inputs: Any, route: Route, hidden: Tensor) -> Any:
        return linearised(lambda i, r: adapted(i, r, hidden), inputs, route.ids, route.w)  # type: ignore[arg-type]

    def weighted(w: Tensor) -> View:
        def routes(owners: Sequence[int]) -> Route:
            return Route.to(torch.arange(1, k + 1).expand(len(owners), -1), w=w.expand(len(owners), -1))

        run: Any = straight if tangent else adapted
        return lambda units: torch.cat(encode(suite.features, run, units, [1] * len(units), False, routes))

    return weighted


def tune(suite: Any, name: str, tangent: bool) -> tuple[Tensor, Head]:
    """A task vector [n] and its head."""
    (bank,), _ = suite.banks("dense")
    job, rng = suite.jobs[name], seeded(suite.lab.seed, name, "tangent")
    row, head, part = torch.zeros(bank.tables["own"].n, requires_grad=True), leaves_of(suite.heads[name]), job.parts["train"]
    groups = [{"params": [row], "lr": LR}, {"params": [head["W"], head["b"]], "lr": 2e-3}]
    adam = torch.optim.Adam(groups)
    batches = [b.tolist() for _ in range(PASSES) for b in torch.randperm(len(part), generator=rng).split(BATCH)]
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / len(batches))
    for rows in batches:
        units = [part.units[r] for r in rows]
        z = runner(suite, row[None], tangent)(torch.ones(1))([u for unit in units for u in unit])
        x = joined(job.kind, z, [len(unit) for unit in units], suite.features.backbone.d)
        adam.zero_grad()
        job.kind.loss(apply(head, x), part.y[rows], [len(unit) for unit in units]).mean().backward()
        adam.step()
        falling.step()
    return row.detach(), {n: t.detach() for n, t in head.items()}


def errors(suite: Any, run: Callable[[Tensor], View], heads: dict[str, Head], rows: int = 100) -> dict[str, float]:
    """The error of each pair of tasks."""
    names, out = list(heads), {}

    def answer(pair: tuple[int, int], t: int, w: Tensor) -> Tensor:
        whole = torch.zeros(len(names)).index_put_((torch.tensor(pair),), w)
        job = suite.jobs[names[pair[t]]]
        units = job.parts["test"].units[:rows]
        z = run(whole)([u for unit in units for u in unit])
        return apply(heads[job.name], joined(job.kind, z, [len(unit) for unit in units], suite.features.backbone.d))

    for pair in combinations(range(len(names)), 2):
        found = disentanglement(lambda t, w, pair=pair: answer(pair, t, w), [1.0], [1.0])  # type: ignore[misc]
        out[f"{names[pair[0]]} {names[pair[1]]}"] = float(found[0, 0])
    return out
