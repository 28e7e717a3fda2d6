import torch
from laws._nasty import close

from anabranch.core.names import make
from anabranch.core.site import Site

HERE = Site("here", "", 0, "linear", 6, 3)


def regmean(rows, gram, keep=0.9):
    return make("merge", {"regmean": {"keep": keep}})(rows, HERE, {"gram": {"here": gram}})


def inputs(t=3, n=40, d=6):
    x = torch.randn(t, n, d, generator=torch.Generator().manual_seed(0))
    return x @ torch.diag(torch.arange(1.0, d + 1)) + x.flip(-1)


def test_it_is_least_squares_to_every_tasks_own_outputs():
    x, rows = inputs(), torch.randn(3, 3, 6)
    own = torch.einsum("tni,toi->tno", x, rows)
    want = torch.linalg.lstsq(x.flatten(0, 1), own.flatten(0, 1)).solution.mT
    close(regmean(rows, x.mT @ x / 40, 1.0), want, 1e-4)


def test_off_the_diagonal_less_counts():
    """With keep: (sum D_t G'_t) (sum G'_t)^-1, G' = keep G + (1 - keep) diag G; on f's weights it is the same change."""
    x, rows, f = inputs().double(), torch.randn(3, 3, 6).double(), torch.randn(3, 6).double()
    gram = x.mT @ x / 40
    bent = 0.9 * gram + 0.1 * torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    want = (bent @ (f + rows).mT).sum(0).mT @ bent.sum(0).inverse()
    assert torch.allclose(f + regmean(rows, gram), want, rtol=1e-6)
    alike = torch.eye(6).expand(3, 6, 6)
    close(regmean(rows.float(), alike), rows.mean(0).float())


def test_inputs_that_never_occur_are_averaged():
    x, rows = inputs(), torch.randn(3, 3, 6)
    x[..., 2] = 0
    got = regmean(rows, x.mT @ x / 40)
    close(got[:, 2], rows.mean(0)[:, 2])
    kept = [0, 1, 3, 4, 5]
    close(got[:, kept], regmean(rows[..., kept], (x.mT @ x / 40)[:, kept][..., kept]), 1e-4)
    close(regmean(rows, torch.zeros(3, 6, 6)), rows.mean(0))


def test_what_is_no_matrix_is_averaged():
    rows = torch.randn(3, 6)
    close(regmean(rows, torch.rand(3, 6, 6)), rows.mean(0))
