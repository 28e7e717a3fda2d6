import torch
from laws._nasty import close

from anabranch.core.names import make

tsv = make("merge", "tsv")


def orthonormal(a, k, seed=0):
    return torch.linalg.qr(torch.randn(a, k, generator=torch.Generator().manual_seed(seed))).Q


def test_tasks_in_directions_of_their_own_are_added():
    """Four tasks of rank 2, all directions at right angles: nothing is lost, nothing interferes."""
    u, v = orthonormal(10, 8).view(10, 4, 2), orthonormal(9, 8, 1).view(9, 4, 2)
    rows = torch.einsum("otk,tk,itk->toi", u, torch.arange(1.0, 9).view(4, 2), v)
    close(tsv(rows), rows.sum(0))
    close(make("merge", {"tsv": {"scale": 1.5}})(rows), 1.5 * rows.sum(0))


def test_each_task_brings_its_strongest_directions():
    """Two tasks of a 4 x 6 matrix: two directions each, made orthogonal by the nearest orthonormal frames."""
    rows = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(rows, full_matrices=False)
    left, right = torch.cat([u[0, :, :2], u[1, :, :2]], 1), torch.cat([vh[0, :2], vh[1, :2]])
    (a, _, b), (c, _, d) = (torch.linalg.svd(x, full_matrices=False) for x in (left, right))
    close(tsv(rows), a @ b @ torch.cat([s[0, :2], s[1, :2]]).diag() @ c @ d, 1e-4)


def test_equal_tasks_do_not_add_up_and_low_ranks_stay_low():
    low = torch.randn(8, 2) @ torch.randn(2, 12)
    close(tsv(low.expand(2, 8, 12)), low, 1e-4)
    other = torch.randn(8, 2) @ torch.randn(2, 12)
    assert torch.linalg.matrix_rank(tsv(torch.stack([low, other])), rtol=1e-4) == 4


def test_vectors_are_averaged():
    rows = torch.randn(3, 7)
    close(tsv(rows), rows.mean(0))
