import torch
from laws._nasty import close

from anabranch.core.names import make


def test_by_hand():
    rows = torch.tensor([[3.0, 4.0], [0.0, 10.0]])  # squared lengths 25 and 100: shares 1/5 and 4/5
    close(make("merge", "metagpt")(rows), torch.tensor([0.6, 8.8]))
    whole = {"norm": torch.tensor([1.0, 3.0])}  # over the whole model: 1/10 and 9/10
    close(make("merge", "metagpt")(rows, None, whole), torch.tensor([0.3, 9.4]))
    close(make("merge", {"metagpt": {"by": "site"}})(rows, None, whole), torch.tensor([0.6, 8.8]))


def test_it_minimises_the_first_order_gap_for_orthogonal_tasks():
    """sum_t |sum_k lambda_k d_k - d_t|^2 weighed by |d_t|^2 and with the lambdas summing to 1 is the paper's objective:
    its minimum is found here by least squares instead."""
    rows = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    n2 = rows.square().sum(1)
    # d/dlambda_k of sum_t n2_t ((lambda_k^2 - 2 lambda_k [k = t]) n2_k) = 0  ->  lambda_k = n2_k / sum_t n2_t
    lam = torch.linalg.solve(torch.diag(n2.sum() * n2), n2 * n2)
    close(make("merge", "metagpt")(rows), lam @ rows)


def test_lengths_whose_squares_do_not_fit():
    rows = torch.tensor([[1e-30, 0.0], [0.0, 2e-30]])
    close(make("merge", "metagpt")(rows) * 1e30, torch.tensor([0.2, 1.6]))
    close(make("merge", "metagpt")(1e30 * (1e30 * rows)) / 1e30, torch.tensor([0.2, 1.6]))
    assert make("merge", "metagpt")(torch.zeros(2, 3)).tolist() == [0, 0, 0]
