import math

import pytest
import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import find
from anabranch.errors import InputError

F = nn.Sequential(nn.Linear(8, 6))
SITE = find(F, "0")[0]


def key(p, site=SITE):
    return make("gate", "arrow").key(site, p, torch.Generator())["v"]


def test_by_hand():
    """|x . v| = 2, 1, 3: the best two are softmaxed, a sign counts nothing."""
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, -0.8]])
    at = At(torch.tensor([[2.0, -1.0], [-3.0, 0.0]]), torch.zeros(2, 3), torch.ones(2, dtype=torch.bool))
    w = make("gate", {"arrow": {"top": 2}}).weigh({}, {"v": v}, at, torch.tensor([True] * 3))
    a, b = math.exp(2), math.exp(1)
    c, d = math.exp(3), math.exp(1.8)
    close(w, torch.tensor([[a / (a + b), b / (a + b), 0], [c / (c + d), 0, d / (c + d)]]))


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_the_key_is_the_top_right_singular_vector(rank):
    """From the factors and from the full matrix alike, up to its sign."""
    a, b = torch.randn(8, rank), torch.randn(rank, 6)
    W = (a @ b).mT
    want = torch.linalg.svd(W).Vh[0]
    for p in ({"a": a, "b": b}, {"W": W}, {"W": W, "b": torch.randn(6)}):
        got = key(p)
        close(got * torch.sign(got @ want), want)
        assert (W @ got).norm() == pytest.approx(float(torch.linalg.matrix_norm(W, 2)), rel=1e-4)


def test_a_rank_one_key_by_hand():
    close(
        key({"a": torch.tensor([[3.0], [4.0], *[[0.0]] * 6]), "b": torch.ones(1, 6)}).abs(), torch.tensor([0.6, 0.8, *[0.0] * 6])
    )


def test_a_slot_that_changes_nothing_has_no_direction():
    assert key({"a": torch.randn(8, 2), "b": torch.zeros(2, 6)}).tolist() == key({"W": torch.zeros(6, 8)}).tolist() == [0.0] * 8


@pytest.mark.parametrize("delta", ["mask", "adapter", "offset", "ia3"])
def test_a_change_without_factors_or_matrix_is_refused_in_words(delta):
    with pytest.raises(InputError, match=r"arrow reads its keys from changes of linear layers \(lora, dense\), got .* at 0;"):
        bank(F, delta, "arrow", at="0")


def test_a_norm_has_no_input_direction():
    f = nn.Sequential(nn.LayerNorm(4))
    with pytest.raises(InputError, match="arrow reads its keys"):
        bank(f, "dense", "arrow", at="0")


def test_it_is_peft_s_arrow():
    """The same experts through PEFT's layer of arrow routing: prototypes by power iteration, top 2 of 3, softmax."""
    arrow = pytest.importorskip("peft.tuners.lora.arrow")
    from peft import ArrowConfig

    torch.manual_seed(1)
    made = bank(F, {"lora": {"rank": 2, "alpha": 4.0}}, {"arrow": {"top": 2, "temperature": 0.7}}, at="0", slots=0)
    trees = []
    for _ in range(3):
        u, v = torch.linalg.qr(torch.randn(8, 2)).Q, torch.linalg.qr(torch.randn(6, 2)).Q
        p = {"a": u * torch.tensor([3.0, 0.3]), "b": v.mT.contiguous()}  # far apart, so that power iteration arrives
        trees.append({"0": p | {"key.v": key(p)}})
    made.add(trees)
    x = torch.randn(4, 5, 8)
    mine = Adapted(F, [made])({"input": x}, Route.to([[1, 2, 3]] * 4)) - F(x)

    A, B = nn.ModuleDict(), nn.ModuleDict()
    for i, tree in enumerate(trees):
        A[f"task_{i}"], B[f"task_{i}"] = nn.Linear(8, 2, bias=False), nn.Linear(2, 6, bias=False)
        A[f"task_{i}"].weight.data, B[f"task_{i}"].weight.data = tree["0"]["a"].mT.contiguous(), tree["0"]["b"].mT.contiguous()
    config = ArrowConfig(top_k=2, router_temperature=0.7, rng_seed=0)
    config.task_adapter_names = []
    layer = arrow.ArrowLoraLinearLayer(8, config)
    layer.on_adapter_change(A, B)
    layer.build_prototypes(A, B)
    close(mine, layer(x, A, B, nn.Identity(), {f"task_{i}": 2.0 for i in range(3)}), 1e-4)


def test_tokens_of_one_row_may_take_different_experts():
    made = bank(F, {"lora": {"rank": 1, "alpha": 1.0}}, {"arrow": {"top": 1}}, at="0", slots=0)
    a, b = torch.eye(8)[:, :1], torch.ones(1, 6)
    ps = [{"a": a.roll(i, 0), "b": (i + 1) * b} for i in range(2)]
    made.add([{"0": p | {"key.v": key(p)}} for p in ps])
    x = torch.zeros(1, 2, 8)
    x[0, 0, 0], x[0, 1, 1] = 5.0, -5.0
    got = Adapted(F, [made])({"input": x}, Route.to([[1, 2]])) - F(x)
    close(got[0], torch.tensor([[5.0] * 6, [-10.0] * 6]))
