import math

import pytest
import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.route import Route

ON = torch.tensor([True] * 3)


def at(x):
    return At(x, torch.zeros(len(x), 2), torch.ones(len(x), dtype=torch.bool))


def test_by_hand():
    """Standardised, (3, 1, 1, 3) is (1, -1, -1, 1) whatever its size and offset; logits 4, -4, 0 over sqrt(4)."""
    v = torch.tensor([[5.0, 1.0, 1.0, 5.0], [0.0, 1.0, 1.0, 0.0], [7.0, 7.0, 9.0, 9.0]])
    w = make("gate", "phatgoose").weigh({}, {"v": v * 1000}, at(torch.tensor([[3.0, 1.0, 1.0, 3.0]]) * 1000), ON)
    a, c = math.exp(2), math.exp(0)
    close(w, torch.tensor([[a / (a + c), 0.0, c / (a + c)]]), 1e-4)


@pytest.mark.parametrize("top", [1, 2, 5])
def test_it_is_the_published_rule(top):
    """LayerNorm without scale (epsilon 1e-5) of keys and tokens, products by sqrt(1/d), the rest at -inf, softmax."""
    x, v = 3 * torch.randn(7, 10) + 1, torch.randn(5, 10)

    def norm(t):
        mean = t.mean(-1, keepdim=True)
        return (t - mean) / (((t - mean) ** 2).mean(-1, keepdim=True) + 1e-5).sqrt()

    scores = norm(x) @ norm(v).T * math.sqrt(1 / 10)
    order = scores.argsort(-1, descending=True)
    scores[torch.arange(7)[:, None], order[:, top:]] = -math.inf
    close(make("gate", {"phatgoose": {"top": top}}).weigh({}, {"v": v}, at(x), torch.tensor([True] * 5)), scores.softmax(-1))


def test_keys_that_were_not_learned_tell_no_slot_from_another():
    made = bank(nn.Sequential(nn.Linear(4, 2)), "offset", "phatgoose", at="0")
    w = made.gate.weigh({}, {"v": torch.stack([made.take(i)["0"]["key.v"] for i in (1, 2, 3)])}, at(torch.randn(5, 4)), ON)
    assert sorted(w[0].tolist()) == [0, 0.5, 0.5]


def test_a_key_is_learned_beside_its_frozen_expert():
    """The expert helps where the first number of x is positive and harms elsewhere: the key learns that direction, from this
    expert's rows alone, and the expert stays as it is."""
    torch.manual_seed(0)
    f = nn.Sequential(nn.Linear(4, 4))
    made = bank(f, "offset", "phatgoose", at="0", slots=2, spread=1.0)
    x = torch.randn(64, 1, 4)
    target = f(x).detach() + (x[..., :1] > 0) * made.take(2)["0"]["d"]
    made.gate, before = made.gate.learner(), made.tables["own"].data.clone()
    adapted = Adapted(f, [made])
    keys = adapted.sources[0]["keys"] = made.tables["keys"].data.clone().requires_grad_()
    optimiser = torch.optim.Adam([keys], lr=0.1)
    first = None
    for _ in range(100):
        optimiser.zero_grad()
        loss = ((adapted({"input": x}, Route.to([2] * 64)) - target) ** 2).mean()
        loss.backward()
        first = first or float(loss.detach())
        assert not keys.grad[:2].any()
        optimiser.step()
    assert first == pytest.approx(float(0.25 * made.take(2)["0"]["d"].square().mean()), rel=1e-4)  # sigmoid(0) of it at first
    assert loss < first / 5 and keys[2].argmax() == 0 and keys[2, 0] > 3 * keys[2, 1:].abs().max()
    assert torch.equal(made.tables["own"].data, before)


def test_a_lone_expert_counts_whole_at_inference():
    w = make("gate", "phatgoose").weigh({}, {"v": torch.randn(1, 4)}, at(torch.randn(5, 4)), ON[:1])
    assert w.tolist() == [[1.0]] * 5
