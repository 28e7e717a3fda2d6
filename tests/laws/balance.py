"""Every aggregator in balance/ lifts to a balancer; its promises are held by laws/merge.py, which walks both families."""

import pytest
import torch

from anabranch.core.balance import Point, lift
from anabranch.core.names import every, make
from anabranch.errors import WorkError


def point(grads: torch.Tensor) -> Point:
    return Point(
        torch.zeros(grads.shape[1]), lambda _: torch.ones(len(grads)), lambda _: grads, [f"task {i}" for i in range(len(grads))]
    )


@pytest.mark.parametrize("name", every("balance"))
def test_lifted_it_gives_the_aggregate_and_a_state(name: str) -> None:
    grads = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    method = make("balance", name)
    direction, state = lift(method)(None, point(grads))
    assert direction is not None and torch.equal(direction, method(grads))
    again, _ = lift(method)(state, point(grads))
    assert again is not None and torch.equal(direction, again)


@pytest.mark.parametrize("name", every("balance"))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_by_name(name: str, bad: float) -> None:
    grads = torch.ones(3, 5)
    grads[1, 2] = bad
    with pytest.raises(WorkError, match="task 1"):
        lift(make("balance", name))(None, point(grads))


@pytest.mark.parametrize("name", every("balance"))
def test_it_descends_where_the_tasks_agree(name: str) -> None:
    """On equal gradients every aggregator points along them."""
    grads = torch.randn(1, 30, generator=torch.Generator().manual_seed(1)).repeat(3, 1)
    assert torch.nn.functional.cosine_similarity(make("balance", name)(grads), grads[0], dim=0) > 0.99
