import pytest
import torch
from laws._nasty import close

from anabranch.core.names import make
from anabranch.merge.dc import smoothed


def orthogonal(n: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed))).Q


def test_smoothing_by_hand():
    s = torch.tensor([[8.0, 3.0, 1.0], [2.0, 2.0, 0.0]])
    assert torch.equal(smoothed(s, "none", 5.0), s)
    close(smoothed(s, "average", 5.0), torch.tensor([[4.0, 4.0, 4.0], [2.0, 2.0, 0.0]]))
    # min(3, 8/1) = 3: the line 3 2 1 of sum 6, scaled to the sum 12; the second has equal values, so ratio 1
    close(smoothed(s, "linear", 3.0), torch.tensor([[6.0, 4.0, 2.0], [2.0, 2.0, 0.0]]))
    close(smoothed(s, "linear", 100.0)[:1], torch.tensor([[8.0, 4.5, 1.0]]) * 12 / 13.5)
    assert smoothed(torch.zeros(1, 3), "average", 5.0).tolist() == [[0, 0, 0]]


def test_tasks_in_orthogonal_spaces_are_all_kept():
    """Nothing interferes: each task's block of M is its own (three numbers; what rounding leaves elsewhere is cut)."""
    U, V = orthogonal(6, 0), orthogonal(6, 1)
    a, b = (
        U[:, :3] @ torch.diag(torch.tensor([4.0, 2.0, 1.0])) @ V[:, :3].T,
        U[:, 3:] @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ V[:, 3:].T,
    )
    plain = make("merge", {"dc": {"smooth": "none", "density": 3 / 36}})
    close(plain(torch.stack([a, b])), a + b)
    even = make("merge", {"dc": {"smooth": "average", "density": 3 / 36, "scale": 0.5}})
    close(even(torch.stack([a, b])), 0.5 * (7 / 3 * U[:, :3] @ V[:, :3].T + 2 * U[:, 3:] @ V[:, 3:].T))
    sparse = make("merge", {"dc": {"smooth": "none", "density": 1 / 36}})  # one entry of M a task: its strongest direction
    close(sparse(torch.stack([a, b])), 4 * U[:, :1] @ V[:, :1].T + 3 * U[:, 3:4] @ V[:, 3:4].T)
    few = make("merge", {"dc": {"smooth": "none", "density": 1 / 4, "rank": 1}})
    close(few(torch.stack([a, b])), 4 * U[:, :1] @ V[:, :1].T + 3 * U[:, 3:4] @ V[:, 3:4].T)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (7, 7)])
def test_against_the_definition(shape):
    """Polar factors by eigenvectors of X^T X, the sign election by a loop over entries."""
    rows, k = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3)).double(), min(shape) // 2
    left, right, cut = [], [], []
    for d in rows:
        u, s, vh = torch.linalg.svd(d, full_matrices=False)
        left.append(u[:, :k])
        right.append(vh[:k].T)
        cut.append(u[:, :k] * s[:k].mean() @ vh[:k])

    def orthonormal(x):
        w, q = torch.linalg.eigh(x.T @ x)
        return x @ q @ torch.diag(w**-0.5) @ q.T

    U, V = orthonormal(torch.cat(left, 1)), orthonormal(torch.cat(right, 1))
    M = torch.stack([U.T @ d @ V for d in cut])
    want = torch.zeros(2 * k, 2 * k).double()
    for i in range(2 * k):
        for j in range(2 * k):
            agree = [float(m) for m in M[:, i, j] if m * M[:, i, j].sum() > 0]
            want[i, j] = sum(agree) / len(agree) if i // k == j // k else 0
    close(make("merge", {"dc": {"density": 1.0}})(rows.float()), (U @ want @ V.T).float(), 1e-4)


def test_smoothing_brings_the_merge_nearer_to_weak_directions():
    g = torch.Generator().manual_seed(4)
    U, V = orthogonal(12, 5), orthogonal(12, 6)
    rows = torch.stack(
        [
            U[:, i : i + 3] @ torch.diag(torch.tensor([9.0, 1.0, 0.5])) @ V[:, i : i + 3].T
            + 0.01 * torch.randn(12, 12, generator=g)
            for i in (0, 3, 6)
        ]
    )

    def worst(merged):  # cosine of the weakest direction of each task with its image
        return min(float(U[:, i + 2] @ merged @ V[:, i + 2] / merged.norm()) for i in (0, 3, 6))

    settings = {"density": 1.0, "rank": 3}
    even, plain = (make("merge", {"dc": settings | {"smooth": how}})(rows) for how in ("average", "none"))
    assert worst(even) > 3 * worst(plain) > 0


def test_what_is_no_matrix_is_averaged():
    close(make("merge", "dc")(torch.tensor([[1.0, 3.0], [3.0, 5.0]])), torch.tensor([2.0, 4.0]))
