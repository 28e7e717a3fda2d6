"""Four text tasks tuned and run in the tangent space of f against ordinary fine-tuning by the same steps: the share of its own
task's score that the sum of the task vectors keeps, at the scale that is best on validation rows, and the disentanglement
error of each pair at weights of 1 (share of 200 test rows whose answer the other vector changes). Last two blocks of MiniLM;
heads are the labels' names, frozen. Beside them ordinary vectors that are only run there (post-hoc linearisation)."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from anabranch.claims._merges import kept
from anabranch.core.adapt import Adapted
from anabranch.engine.linear import outputs
from anabranch.engine.merging import taken
from anabranch.engine.passes import encode
from anabranch.merge.tangent import Linearised, disentanglement

holds = ("linear > nonlinear", "linear_error < nonlinear_error")
TASKS, ROWS, SCALES = 4, 200, (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts, out = lab.experts(TASKS), dict[str, dict[str, float]]()
    suite, heads = experts.suite, experts.heads
    tangents = experts.stages()("dense", {}, 1.0, tangent=True)
    plain, straight = torch.stack([slot["0.own"] for slot in experts.slots]), tangents.tables["own"].data[1:]
    for way, rows, tangent in (("nonlinear", plain, False), ("linear", straight, True), ("post_hoc", plain, True)):
        views = sums(suite, rows, tangent)

        def scores(weights: Tensor, split: str, views: Any = views) -> dict[str, float]:
            return {n: suite.score(n, views(w), heads[n], split) for n, w in zip(heads, weights, strict=True)}

        even = torch.ones(len(heads), len(heads))
        scale = max(SCALES, key=lambda scale: sum(scores(scale * even, "valid").values()))
        single = scores(torch.eye(len(heads)), "test")
        out |= {way: kept(scores(scale * even, "test"), single), f"{way}_error": errors(suite, views, heads)}
        out |= {f"{way}_single": single}
    return out | {"zero_shot": suite.probe()}


def sums(suite: Any, rows: Tensor, tangent: bool) -> Callable[[Tensor], Any]:
    """Weights [k] of task vectors [k, n] -> features of units under their weighted sum, each computed once."""
    (bank,), _ = suite.banks("dense")
    adapted = Adapted(suite.f, [bank], suite.features.tail)
    model: Any = Linearised(adapted) if tangent else adapted
    known: dict[tuple[float, ...], dict[int, Tensor]] = {}

    def weighted(w: Tensor) -> Any:
        seen = known.setdefault(tuple(w.tolist()), {})

        @torch.no_grad()
        def view(units: Sequence[int]) -> Tensor:
            if new := [u for u in dict.fromkeys(units) if u not in seen]:
                adapted.sources[0]["own"] = torch.stack([torch.zeros_like(rows[0]), w @ rows])
                seen.update(zip(new, encode(suite.features, model, new, [1] * len(new), False), strict=True))
            return torch.cat([seen[u] for u in units])

        return view

    return weighted


def errors(suite: Any, views: Callable[[Tensor], Any], heads: dict[str, Any]) -> dict[str, float]:
    """The error of each pair of tasks."""
    names, out = list(heads), {}

    def answer(pair: tuple[int, int], t: int, w: Tensor) -> Tensor:
        whole, job = torch.zeros(len(names)).index_put_((torch.tensor(pair),), w), suite.jobs[names[pair[t]]]
        part = taken(job.parts["test"], range(min(ROWS, len(job.parts["test"]))))
        return outputs(job, part, suite.features, views(whole), heads[job.name])[0]

    for pair in combinations(range(len(names)), 2):
        found = disentanglement(lambda t, w, pair=pair: answer(pair, t, w), [1.0], [1.0])  # type: ignore[misc]
        out[f"{names[pair[0]]} {names[pair[1]]}"] = float(found[0, 0])
    return out
