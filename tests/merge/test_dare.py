import torch
from laws._nasty import close

from anabranch.core.names import make
from anabranch.core.site import Site


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
