import pytest
import torch
from laws._nasty import close

from anabranch.core.names import make


def slerp(weight):
    return make("merge", {"slerp": {"weight": weight}})


@pytest.mark.parametrize("weight", [0.0, 1 / 3, 0.5, 1.0])
def test_on_a_quarter_circle(weight):
    angle = torch.tensor(weight * torch.pi / 2)
    close(slerp(weight)(torch.tensor([[5.0, 0, 0], [0, 5.0, 0]])), 5 * torch.stack([angle.cos(), angle.sin(), torch.tensor(0.0)]))


def test_length_and_pace_are_even():
    """Equal lengths stay, and equal steps turn by equal angles."""
    a, b = torch.nn.functional.normalize(torch.randn(2, 30, generator=torch.Generator().manual_seed(0)))
    way = torch.stack([slerp(w / 4)(torch.stack([a, b]).view(2, 5, 6)).flatten() for w in range(5)])
    close(way.norm(dim=1), torch.ones(5))
    turns = (way[1:] * way[:-1]).sum(1)
    close(turns, turns[:1].expand(4))


def test_parallel_opposed_and_zero_vectors_take_the_straight_line():
    a = torch.tensor([3.0, 4.0])
    for b in (2 * a, -a, 0 * a):
        close(slerp(0.25)(torch.stack([a, b])), 0.75 * a + 0.25 * b)
