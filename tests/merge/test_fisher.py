import torch
from laws._nasty import close

from anabranch.core.names import make
from anabranch.core.site import Site

HERE = Site("here", "", 0, "linear", 2, 2)
fisher = make("merge", "fisher")


def test_by_hand():
    rows = torch.tensor([[[1.0, 2], [3, 4]], [[5.0, 6], [7, 8]]])
    f = torch.tensor([[[1.0, 0], [0, 1]], [[3.0, 2], [0, 1]]])
    assert fisher(rows, HERE, {"fisher": {"here": f}}).tolist() == [[4, 6], [5, 6]]  # nobody cares for the third: mean
    assert fisher(rows, HERE, {"fisher": {"here": 1e-12 * f}}).tolist() == [[4, 6], [5, 6]]


def test_it_minimises_the_summed_quadratic_losses():
    rows, f = torch.randn(4, 3, 5).double(), torch.rand(4, 3, 5).double()
    x = fisher(rows, HERE, {"fisher": {"here": f}}).requires_grad_()
    (f * (x - rows) ** 2).sum().backward()
    assert x.grad.abs().max() < 1e-12


def test_tensors_without_curvature_are_averaged():
    rows = torch.randn(3, 4)
    for seen in ({}, {"here": torch.rand(3, 4, 6)}):
        close(fisher(rows, HERE, {"fisher": seen}), rows.mean(0))
