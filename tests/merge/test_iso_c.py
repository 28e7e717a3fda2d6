import torch
from laws._nasty import close

from anabranch.core.names import make

iso = make("merge", {"iso_c": {"scale": 1.0}})


def test_the_sums_directions_all_become_equally_strong():
    rows = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    u, s, vh = torch.linalg.svd(rows.sum(0), full_matrices=False)
    got = iso(rows)
    close(torch.linalg.svdvals(got), s.mean().expand(5))
    close(got, s.mean() * u @ vh)
    close(make("merge", {"iso_c": {"scale": 2.0}})(rows), 2 * got)


def test_directions_that_the_sum_lacks_stay_away():
    """A sum of rank 2 with strengths 4 and 2 becomes 3 and 3, not a full matrix."""
    rows = torch.zeros(2, 4, 5)
    rows[0, 0, 0], rows[1, 1, 1] = 4, -2
    close(iso(rows), torch.diag(torch.tensor([3.0, -3, 0, 0, 0]))[:4])


def test_vectors_are_averaged():
    rows = torch.randn(3, 7)
    close(iso(rows), rows.mean(0))
