"""Compacter against the matrices that its factors stand for, and what it costs."""

import pytest
import torch
from laws._nasty import D, backbone, bank, batch, close, run

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.site import find
from anabranch.errors import InputError


def dense(a, s, t):
    return sum(torch.kron(a[i], s[i] @ t[i]) for i in range(len(a)))


def test_one_product_by_hand():
    compacter = make("delta", {"compacter": {"size": 2, "n": 1}})
    p = {"A": torch.tensor([[[2.0]]]), "down_s": torch.tensor([[[1.0], [1.0]]]), "down_t": torch.tensor([[[50.0, -50.0]]]),
         "down_bias": torch.tensor([1.0, 0.0]), "up_s": torch.tensor([[[1.0], [9.0]]]),
         "up_t": torch.tensor([[[1.0, -1.0]]]), "up_bias": torch.tensor([0.0, 0.5])}  # fmt: skip
    at = At(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), torch.ones(1, dtype=torch.bool))
    # y D + d = [301, -300], of which gelu keeps 301; U = 2 [[1, -1], [9, -9]]
    assert compacter.apply(p, at).tolist() == [[602.0, -601.5]]


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 3), (4, 1), (4, 2), (8, 1)])
def test_against_its_kronecker_products(n, rank):
    f = backbone("bert")
    made = bank(f, {"compacter": {"size": 8, "n": n, "rank": rank}})
    site = made.sites[1]
    p = made.take(2)[site.key] | made.tables["shared"].get(1)[""]
    y = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    down, up = (dense(p["A"], p[f"{side}_s"], p[f"{side}_t"]) for side in ("down", "up"))
    assert down.shape == (D, 8) and up.shape == (8, D)
    want = torch.nn.functional.gelu(y @ down + p["down_bias"]) @ up + p["up_bias"]
    close(made.delta.apply(p, At(y, y, torch.ones(5, dtype=torch.bool))), want)


def test_the_slow_factors_are_one_copy_for_all_sites_and_slots():
    f, inputs = backbone("bert"), batch("bert")
    made = bank(f, "compacter")
    assert made.tables["shared"].n == 4**3 and made.tables["own"].n == 2 * (2 * (D + 24) + D + 24)
    before = run(Adapted(f, [made]), inputs, [2, 3, 1, 0, 1])
    made.tables["shared"].data[1] += 0.1
    after = run(Adapted(f, [made]), inputs, [2, 3, 1, 0, 1])
    assert ((after - before).abs().amax((1, 2)) > 1e-3).tolist() == [True, True, True, False, True]


def test_sizes_that_do_not_divide_are_refused():
    site = find(backbone("bert"), "mlp.out")[0]
    for settings in ({"size": 10}, {"size": 12, "n": 3}):
        with pytest.raises(InputError, match="n divides size .* and the 32 outputs of encoder.layer.0.output.dense, got"):
            make("delta", {"compacter": settings}).init(site, torch.Generator())
