"""What every balancer promises on hard inputs; promises of those that are a plain [t, n] -> [n] are held by laws/merge.py.

Three forms, told apart by the first parameter's name: ``rows`` a combine, ``state`` a balancer, ``train`` a recipe of runs.
"""

import inspect
import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from anabranch.balance._common import inner
from anabranch.balance._recipe import Run
from anabranch.core.balance import Point
from anabranch.core.names import every, find, make
from anabranch.errors import WorkError


def form(name: str) -> str:
    return next(iter(inspect.signature(find(f"balance.{name}")).parameters))


STEPPED = [n for n in every("balance") if form(n) in ("rows", "state")]
RECIPES = [n for n in every("balance") if form(n) == "train"]
NAMES = [f"task {i}" for i in range(40)]


def point(grads: Tensor, names: Sequence[str] = NAMES, losses: float = 1.0) -> Point:
    """Linear losses ``losses + g_t . theta`` at theta = 0; theta may be [n] or one [r, n] for each."""
    return Point(
        torch.zeros(grads.shape[1]),
        lambda theta: losses + (grads * theta).sum(1),
        lambda _: grads.clone(),
        list(names[: len(grads)]),
    )


def stepped(balancer: Any, state: Any, at: Point, calls: int = 8) -> tuple[Tensor | None, Any]:
    """The first direction within so many calls."""
    direction = None
    for _ in range(calls):
        if direction is None:
            direction, state = balancer(state, at)
    return direction, state


def stored(state: Any) -> Any:
    """What a killed run finds again: tensors by safetensors, the rest by JSON."""
    if not isinstance(state, dict):
        return json.loads(json.dumps(state))
    tensors = {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)}
    note = {k: v for k, v in state.items() if not isinstance(v, Tensor)}
    return load(save(tensors)) | json.loads(json.dumps(note, allow_nan=False))


def hard() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(4, 60, generator=g)
    return {
        "ordinary": base,
        "zero rows": base * torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None],
        "all zero": torch.zeros(3, 60),
        "rank 1": torch.randn(4, 1, generator=g) * torch.randn(1, 60, generator=g),
        "opposed": torch.stack([base[0], -base[0]]),
        "equal": base[:1].repeat(3, 1),
        "tiny": base * 1e-10,
        "huge": base * 1e10,
        "both": base * torch.tensor([1e-8, 1.0, 1e8, 1e4])[:, None],
        "one": base[:1],
        "many": torch.randn(40, 6, generator=g),
    }


HARD = hard()


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("case", HARD)
def test_it_gives_a_finite_direction_and_a_state_without_side_effects(name: str, case: str) -> None:
    grads = HARD[case]
    before, drawn, at = grads.clone(), torch.random.get_rng_state(), point(grads)
    direction, state = stepped(inner(name), None, at)
    again, _ = stepped(inner(name), None, at)
    assert direction is not None and direction.shape == grads.shape[1:] and direction.isfinite().all()
    assert again is not None and torch.equal(direction, again)
    after, _ = stepped(inner(name), state, at)
    twice, _ = stepped(inner(name), state, at)  # a step changes no state that it was given
    assert after is not None and after.isfinite().all() and torch.equal(after, twice)
    assert torch.equal(grads, before) and torch.equal(torch.random.get_rng_state(), drawn)


@pytest.mark.parametrize("name", STEPPED)
def test_a_killed_run_goes_on_as_it_would_have(name: str) -> None:
    rng = torch.Generator().manual_seed(5)
    points = [point(torch.randn(3, 12, generator=rng), losses=1 + i / 10) for i in range(12)]
    balancer, whole, killed = inner(name), None, None
    for at in points:
        kept, whole = balancer(whole, at)
        found, killed = balancer(stored(killed), at)
        assert (kept is None) == (found is None)
        assert kept is None or torch.equal(kept, found)


@pytest.mark.parametrize("name", STEPPED)
def test_tasks_may_come_and_go(name: str) -> None:
    rng, balancer, state = torch.Generator().manual_seed(6), inner(name), None
    for here in ([0, 1, 2], [3, 4], [0, 1, 2], [2], [1, 4]):
        direction, state = balancer(state, point(torch.randn(len(here), 12, generator=rng), [NAMES[i] for i in here]))
        assert direction is None or (direction.shape == (12,) and direction.isfinite().all())


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_by_name(name: str, bad: float) -> None:
    grads = torch.ones(3, 5)
    grads[1, 2] = bad
    with pytest.raises(WorkError, match="task 1"):
        inner(name)(None, point(grads))


@pytest.mark.parametrize("name", STEPPED)
def test_it_descends_where_the_tasks_agree(name: str) -> None:
    """On equal gradients every balancer points along them, up to how it scales single entries."""
    grads = torch.randn(1, 400, generator=torch.Generator().manual_seed(1)).repeat(3, 1)
    direction, _ = stepped(inner(name), None, point(grads))
    assert direction is not None and torch.nn.functional.cosine_similarity(direction, grads[0], dim=0) > 0.9


class Toy:
    """Trains nothing: task i's score falls with the weight of the others. Keeps what it was asked for."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks, self.asked = list(tasks), list[dict[str, float]]()

    def __call__(self, weights: dict[str, float]) -> Run:
        self.asked.append(dict(weights))
        rng = torch.Generator().manual_seed(len(self.asked))
        scores = {t: 0.5 + 0.1 * i / len(self.tasks) + 0.01 * weights[t] for i, t in enumerate(self.tasks)}
        truth = {t: torch.rand(4, 10 + i, generator=rng) for i, t in enumerate(self.tasks)}
        return Run(len(self.asked), scores, truth)

    def features(self, task: str) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(self.tasks.index(task))
        return torch.randn(30, 8, generator=rng), torch.randint(0, 2, (30, 1), generator=rng).float()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_serves_every_task_by_a_run_that_trained_it(name: str) -> None:
    tasks = NAMES[:5]
    train, again = Toy(tasks), Toy(tasks)
    served = make("balance", name)(train, tasks)
    assert list(served) == tasks and train.asked
    assert all(set(w) == set(tasks) and all(0 <= x < 100 for x in w.values()) for w in train.asked)
    assert all(train.asked[served[t].slot - 1][t] > 0 for t in tasks)
    make("balance", name)(again, tasks)
    assert train.asked == again.asked  # memoised runs are found again


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_refuses_one_task(name: str) -> None:
    with pytest.raises(ValueError, match="two"):
        make("balance", name)(Toy(NAMES[:1]), NAMES[:1])
    with pytest.raises(ValueError, match="several times"):
        inner(name)
