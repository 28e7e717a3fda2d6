import math

import pytest
import torch
from laws._nasty import close

from anabranch.core.names import make

stock = make("merge", "model_stock")


@pytest.mark.parametrize("degrees", [0, 30, 60, 89])
def test_two_tasks_at_an_angle(degrees):
    """The paper's ratio for two models: 2 cos / (1 + cos) of their mean, whatever their lengths."""
    c = math.cos(math.radians(degrees))
    rows = torch.tensor([[2.0, 0, 0], [3 * c, 3 * math.sin(math.radians(degrees)), 0]])
    close(stock(rows), 2 * c / (1 + c) * rows.mean(0))


def test_right_and_blunt_angles_give_f():
    assert stock(torch.eye(3)).tolist() == [0, 0, 0]
    assert stock(torch.tensor([[1.0, 0], [-1.0, 0.5]])).tolist() == [0, 0]


def test_it_is_the_point_of_the_tasks_plane_nearest_to_the_centre_they_scatter_around():
    """Tasks = centre + noise of equal length, at right angles to it and to each other: the merge lies on the way from f to
    their mean, where it is nearest to the centre."""
    centre, noise = torch.tensor([1.0, 0, 0, 0]), 2 * torch.eye(4)[1:]
    rows = centre + noise
    mean, got = rows.mean(0), stock(rows)
    close(got, mean * (mean @ centre) / (mean @ mean))
