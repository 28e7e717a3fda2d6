import math

import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.route import Route

AT = At(torch.ones(3, 2), torch.ones(3, 4), torch.ones(3, dtype=torch.bool))


def test_by_hand():
    own = {"z": torch.tensor([0.0, math.log(3), 5.0])}  # sigmoids 1/2, 3/4, and one that is off
    w = make("gate", "poly").weigh(own, {}, AT, torch.tensor([True, True, False]))
    close(w, torch.tensor([0.4, 0.6, 0.0]))
    assert make("gate", "poly").weigh(own, {}, AT, torch.tensor([False] * 3)).tolist() == [0, 0, 0]


def test_it_starts_about_even():
    z = make("gate", "poly").own(None, 5, torch.Generator().manual_seed(0))["z"]
    assert z.shape == (5,) and z.abs().max() <= 1e-3 and len(z.unique()) == 5


def test_factors_are_mixed_not_products():
    """(sum w a)(sum w b), which is not sum w a b."""
    f, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(2, 3, 6)
    made = bank(f, {"lora": {"rank": 2, "alpha": 2.0}}, "poly", at="0", routes=3, spread=0.5)
    made.add_gate({"0": {"z": torch.tensor([-1.0, 0.5, 2.0])}})
    y = Adapted(f, [made])({"input": x}, Route.to([[1, 2, 3]] * 2, who=torch.tensor([1, 1])))
    w = torch.sigmoid(torch.tensor([-1.0, 0.5, 2.0]))
    a, b = (sum(w[k] / w.sum() * made.take(k + 1)["0"][n] for k in range(3)) for n in "ab")
    close(y, f(x) + x @ a @ b)
    assert not torch.allclose(
        y, f(x) + x @ sum(w[k] / w.sum() * made.take(k + 1)["0"]["a"] @ made.take(k + 1)["0"]["b"] for k in range(3)), atol=1e-3
    )
