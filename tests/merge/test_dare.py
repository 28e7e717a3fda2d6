import numpy as np
import pytest
import torch
from laws._nasty import close

from anabranch.core.names import make
from anabranch.core.site import Site
from anabranch.merge._parts import Draws, Stream, drop, rounded


def test_what_stays_is_divided_by_its_share():
    row = torch.full((1, 100, 100), 3.0)
    got = make("merge", {"dare": {"density": 0.25, "scale": 1.0}})(row)
    assert set(got.unique().tolist()) == {0.0, 12.0}
    assert abs((got > 0).float().mean() - 0.25) < 0.02  # four standard deviations are 0.017


def test_on_average_it_is_task_arithmetic():
    rows = torch.randn(3, 4, 5)
    draws = [make("merge", {"dare": {"density": 0.5, "scale": 0.7, "seed": s}})(rows) for s in range(300)]
    close(torch.stack(draws).mean(0), 0.7 * rows.sum(0), 0.3)
    close(make("merge", {"dare": {"density": 1.0}})(rows), make("merge", "task_arithmetic")(rows))


def test_masks_come_from_the_seed_and_the_site():
    rows, dare = torch.ones(2, 50), make("merge", "dare")
    here, there = (Site(n, "", 0, "linear", 1, 1) for n in ("here", "there"))
    assert torch.equal(dare(rows, here), dare(rows, here)) and not torch.equal(dare(rows, here), dare(rows, there))
    assert not torch.equal(dare(rows, here), make("merge", {"dare": {"seed": 1}})(rows, here))
    state = torch.random.get_rng_state()
    dare(rows, here)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_tasks_are_thinned_apart():
    got = make("merge", {"dare": {"density": 0.5, "scale": 1.0}})(torch.tensor([[1.0], [100.0]]).expand(2, 400))
    assert {0.0, 2.0, 200.0, 202.0} == set(got.unique().tolist())


@pytest.mark.parametrize(
    ("density", "kept"), [(1e-9, 1), (1 / 65536, 1), (0.3, 19661), (0.5, 32768), (0.999999, 65536), (1.0, 65536)]
)
def test_of_all_numbers_of_16_bits_as_many_stay_as_said(density: float, kept: int):
    """So that the mean over seeds is exactly what goes in."""
    every = np.arange(-32768, 32768).astype(np.int16)
    for share in (density, torch.tensor([[density]]), torch.full((1, 65536), density)):
        got = drop(torch.ones(1, 65536), share, Draws([lambda m: every]))
        assert int((got > 0).sum()) == kept and float(got.double().sum()) == pytest.approx(65536, rel=1e-6)
    assert rounded(density) == kept / 65536


@pytest.mark.parametrize("density", [1e-9, 1e-4])
def test_a_density_of_next_to_nothing_divides_by_what_is_kept(density: float):
    got = make("merge", {"dare": {"density": density, "scale": 1.0}})(torch.ones(2, 1 << 19))
    share = max(1, round(density * 65536)) / 65536
    assert torch.isfinite(got).all() and float(got[got > 0].min()) == pytest.approx(1 / share)
    assert abs(float((got > 0).float().mean()) / (2 * share) - 1) < 5 / (2 * share * 2**19) ** 0.5


def test_with_density_1_everything_stays():
    rows = torch.randn(3, 70, 70)
    assert torch.equal(
        make("merge", {"dare": {"density": 1.0, "scale": 1.0}})(rows),
        make("merge", {"dare": {"density": 0.9999999, "scale": 1.0}})(rows),
    )
    close(make("merge", {"dare": {"density": 1.0, "scale": 1.0}})(rows), rows.sum(0))


@pytest.mark.parametrize("sizes", [[1000], [1] * 1000, [7, 0, 1, 2, 3, 987], [4, 996], [999, 1]])
def test_a_stream_is_the_same_in_whichever_pieces(sizes: list[int]):
    stream = Stream([1, 2])
    got = np.concatenate([stream(m) for m in sizes])
    words = np.random.SFC64([1, 2]).random_raw(250)
    assert np.array_equal(got, words.view(np.int16)) and len(got) == 1000
