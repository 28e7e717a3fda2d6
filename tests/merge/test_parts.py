import pytest
import torch

from anabranch.merge._parts import ranked, sweep, trim


@pytest.mark.parametrize("n", [1, 2, 1000, 40_000])
@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.zeros_like, torch.sign, lambda x: x.bfloat16().float()])
def test_ranked_is_what_sorting_finds(n, kind):
    rows = kind(torch.randn(3, n, generator=torch.Generator().manual_seed(n)))
    each = [1, max(1, n // 5), n]
    by_size = rows.abs().sort(dim=1, descending=True).values
    same, own = ranked(rows, max(1, n // 2), each)
    assert torch.equal(same[:, 0], by_size[:, max(1, n // 2) - 1])
    assert torch.equal(own[:, 0], torch.stack([r[c - 1] for r, c in zip(by_size, each, strict=True)]))


def test_equal_numbers_at_the_edge_all_stay():
    rows = torch.tensor([[1.0, -2, 2, 0, 2, 3]])
    assert trim(rows, ranked(rows, 2)[0]).tolist() == [[0, -2, 2, 0, 2, 3]]


@pytest.mark.parametrize("shape", [(2, 0), (2, 7), (3, 50, 700), (200, 300), (1, 70_000)])
def test_a_sweep_meets_every_number_once_and_leaves_the_rows_alone(shape):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before, edge = rows.clone(), torch.full((len(rows), 1), 0.5)
    want = (rows * (rows.abs() >= 0.5)).sum(0)
    got = sweep(rows, lambda kept: kept.mul_(1).sum(0), lambda d, out: trim(d, edge, out))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert torch.equal(rows, before)
