import pytest
import torch
from laws._nasty import close

from anabranch.core.names import make
from anabranch.errors import InputError


def della(**settings):
    return make("merge", {"della": settings})


def test_larger_numbers_of_a_neuron_stay_more_often():
    """Ranks 1 ... 5 of every row stay with 0.3, 0.4, 0.5, 0.6, 0.7, divided by it; one task, so that no sign is elected."""
    row = torch.tensor([0.05, -0.4, 0.1, 0.2, -0.3]).repeat(1, 40_000, 1) * torch.rand(1, 40_000, 1).add(1)
    share = torch.tensor([0.3, 0.7, 0.4, 0.5, 0.6])
    got = della(density=0.5, spread=0.2, scale=1.0)(row)
    close((got != 0).float().mean(0), share, 0.015)  # five standard deviations are 0.0125
    close(got, torch.where(got != 0, row[0] / share, 0))


def test_without_spread_it_is_dare_ties():
    rows = torch.randn(3, 30, 20)
    close(della(density=0.3, spread=0.0, scale=0.7, seed=3)(rows),
          make("merge", {"dare_ties": {"density": 0.3, "scale": 0.7, "seed": 3}})(rows))  # fmt: skip
    close(della(density=1.0, scale=1.0)(rows), make("merge", {"ties": {"density": 1.0}})(rows))


@pytest.mark.parametrize(("density", "spread"), [(0.1, 0.15), (0.9, 0.2), (0.2, 0.2)])
def test_probabilities_outside_0_to_1_are_refused(density, spread):
    with pytest.raises(InputError, match=f"density - spread .* got {density} and {spread}: .* below 0.[12]"):
        della(density=density, spread=spread)(torch.ones(2, 4))
