import pytest
import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.gate._skill import blocks, longest


def run(gate, made, z, x):
    """Rows x under all skills with the scores z."""
    made.gate = make("gate", gate)
    made.table("gate", {"0": {"z": z.shape}})
    made.add_gate({"0": {"z": z}})
    route = Route.to([list(range(1, len(made) + 1))] * len(x), who=torch.ones(len(x), dtype=torch.long))
    return Adapted(F, [made])({"input": x}, route)


torch.manual_seed(0)
F = nn.Sequential(nn.Linear(8, 12))
X = torch.randn(2, 3, 8)


def skills():
    return bank(F, {"lora": {"rank": 2, "alpha": 2.0}}, at="0", slots=3, spread=0.5)


def test_it_is_the_published_sum_over_splits():
    """A [skill, split, d_in / h, r] and B [skill, r, split, d_out / h], each split mixed by its own row of weights."""
    made, z = skills(), torch.randn(4, 3)
    y = run({"mhr": {"heads": 4}}, made, z, X)
    s = torch.sigmoid(z)
    w = s / s.sum(1, keepdim=True)
    A = torch.stack([made.take(k)["0"]["a"] for k in (1, 2, 3)]).view(3, 4, 2, 2)
    B = torch.stack([made.take(k)["0"]["b"] for k in (1, 2, 3)]).view(3, 2, 4, 3)
    a, b = torch.einsum("qs,sqdr->qdr", w, A).reshape(8, 2), torch.einsum("qs,srqd->rqd", w, B).reshape(2, 12)
    close(y, F(X) + X @ a @ b)


def test_one_head_is_poly():
    made, z = skills(), torch.randn(1, 3)
    close(run({"mhr": {"heads": 1}}, made, z, X), run("poly", made, z[0], X))


def test_equal_heads_are_poly():
    made, z = skills(), torch.randn(3)
    close(run({"mhr": {"heads": 5}}, made, z.expand(5, 3), X), run("poly", made, z, X))


def test_heads_by_hand():
    own = {"a": torch.tensor([[[1.0], [1.0], [1.0]], [[3.0], [3.0], [3.0]]]), "s": torch.tensor([10.0, 20.0])}
    w = torch.tensor([[1.0, 0.0], [0.5, 0.5]])  # the first head takes skill 1, the second both alike
    got = blocks(make("delta", "lora"), own, w)
    assert got["a"].tolist() == [[1.0], [1.0], [2.0]]  # three rows in two heads: two and one
    assert got["s"] == pytest.approx(12.5)  # a single number: the mean head, 3/4 and 1/4


def test_the_axis_that_heads_cut():
    assert longest(torch.zeros(9, 8, 2)) == -2 and longest(torch.zeros(9, 2, 8)) == -1
    assert longest(torch.zeros(9, 4, 4)) == longest(torch.zeros(9, 7)) == -1


def test_more_heads_than_rows_leave_some_without_a_block():
    made = skills()
    y = run({"mhr": {"heads": 20}}, made, torch.randn(20, 3), X)
    assert y.isfinite().all() and not torch.equal(y, F(X))


def test_the_routing_is_learned():
    """Blocks of two skills, pasted together, are found again by gradient."""
    made = skills()
    z = torch.full((2, 3), -4.0)
    z[0, 0] = z[1, 2] = 4.0
    target = run({"mhr": {"heads": 2}}, made, z, X).detach()
    adapted = Adapted(F, [made])
    leaf = adapted.sources[0]["gate"] = torch.zeros_like(made.tables["gate"].data).requires_grad_()
    optimiser = torch.optim.Adam([leaf], lr=0.2)
    route = Route.to([[1, 2, 3]] * 2, who=torch.tensor([1, 1]))
    for _ in range(150):
        optimiser.zero_grad()
        loss = ((adapted({"input": X}, route) - target) ** 2).mean()
        loss.backward()
        optimiser.step()
    assert loss < 1e-4 and leaf[1].view(2, 3).argmax(1).tolist() == [0, 2]
