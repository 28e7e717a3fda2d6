import pytest
import torch
from laws._nasty import close

from anabranch.core.names import make
from anabranch.core.site import Site

HERE = Site("here", "", 0, "linear", 50, 40)


def test_it_is_ties_of_what_dare_leaves():
    """DARE of one task among zeros shows what that task keeps under the same seed."""
    rows = torch.randn(3, 40, 50)
    alone = rows[None] * torch.eye(3)[:, :, None, None]
    dropped = torch.stack([make("merge", {"dare": {"density": 0.3, "scale": 1.0, "seed": 4}})(one, HERE) for one in alone])
    assert 0.2 < (dropped != 0).float().mean() < 0.4
    got = make("merge", {"dare_ties": {"density": 0.3, "scale": 0.7, "seed": 4}})(rows, HERE)
    close(got, make("merge", {"ties": {"density": 1.0, "scale": 0.7}})(dropped))


def test_with_everything_kept_it_is_ties():
    rows = torch.randn(4, 6, 7)
    close(make("merge", {"dare_ties": {"density": 1.0, "scale": 1.0}})(rows), make("merge", {"ties": {"density": 1.0}})(rows))


@pytest.mark.parametrize("method", ["dare_ties", "dare", "ties", "della", "breadcrumbs", "consensus"])
@pytest.mark.parametrize(("t", "n"), [(6, 70_003), (2, 131_073), (33, 9_001)])
def test_the_number_of_threads_changes_no_bit(method: str, t: int, n: int):
    """A thread alone works on larger pieces."""
    rows, threads = torch.randn(t, n, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    made = []
    try:
        for k in (1, 2):
            torch.set_num_threads(k)
            made.append(make("merge", method)(rows, HERE))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made)
