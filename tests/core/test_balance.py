"""Where training stands, and any aggregator as a balancer."""

import pytest
import torch

from anabranch.core.balance import Point, lift
from anabranch.core.names import find
from anabranch.errors import WorkError


def point(grads: torch.Tensor, asked: list) -> Point:
    def at(theta: torch.Tensor) -> torch.Tensor:
        asked.append(theta)
        return grads

    return Point(torch.tensor([1.0, 2.0]), lambda theta: theta, at, [f"task{i}" for i in range(len(grads))])


def test_a_balancer_combines_the_gradients_where_training_stands():
    asked: list[torch.Tensor] = []
    here = point(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), asked)
    direction, state = lift(find("balance.mean"))(None, here)
    assert direction.tolist() == [2.0, 1.0] and asked[0] is here.theta and len(asked) == 1
    _, after = lift(find("balance.mean"))(state, here)
    assert (state, after) == (1, 2)


def test_a_merge_is_an_aggregator():
    direction, _ = lift(find("merge.ties"))(None, point(torch.tensor([[1.0, -5.0], [3.0, 1.0]]), []))
    assert direction.tolist() == [3.0, -5.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_is_refused_by_the_name_of_its_task(bad):
    grads = torch.ones(3, 2)
    grads[1, 0] = bad
    with pytest.raises(WorkError, match="the gradient of task1 is not finite"):
        lift(find("balance.mean"))(None, point(grads, []))
