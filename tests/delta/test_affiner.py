"""The affiner by hand, and what is left of it without a part: SSF and bias tuning."""

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, run

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.site import find
from anabranch.errors import InputError


@pytest.mark.parametrize("biased", [True, False])
def test_by_hand(biased):
    affiner = make("delta", {"affiner": {"rank": 2, "scale": 0.5}})
    W, b0 = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), torch.tensor([10.0, 20.0, 30.0]) if biased else None
    p = {
        "a": torch.tensor([1.0, 0.0, -0.5]),
        "b": torch.tensor([0.0, 7.0, 0.0]),
        "down": torch.tensor([[1.0, -1.0], [0.0, 0.0]]),
        "up": torch.tensor([[2.0, 4.0, 6.0], [100.0, 100.0, 100.0]]),
    }
    x = torch.tensor([[2.0, 4.0]])  # W x = 2 8 6; relu(x down) = 2 0, times up, halved: 2 4 6
    y = x @ W.T + (0 if b0 is None else b0)
    at = At(x, y, torch.ones(1, dtype=torch.bool), W, b0)
    assert affiner.apply(p, at).tolist() == [[2 + 0 + 2, 0 + 7 + 4, -3 + 0 + 6]]


def test_one_scale_for_all_outputs_and_a_neutral_start():
    f = torch.nn.Sequential(torch.nn.Linear(4, 3))
    site = find(f, "0")[0]
    p = make("delta", {"affiner": {"rank": 2, "channels": False}}).init(site, torch.Generator())
    assert p["a"].shape == (1,) and not p["a"].any() and not p["b"].any() and not p["up"].any() and p["down"].all()
    with pytest.raises(InputError, match="rank is at most 3 at 0, got 8"):
        make("delta", "affiner").init(site, torch.Generator())
    with pytest.raises(InputError, match="an affiner sits at linear layers"):
        make("delta", "affiner").init(find(backbone("bert"), "norm")[0], torch.Generator())


def test_without_the_branch_it_is_ssf():
    f, inputs = backbone("llama"), batch("llama")  # no biases: a scales the whole output there
    made, other = bank(f, "affiner"), bank(f, "ssf", at=make("delta", "affiner").at)
    for i in (1, 2, 3):
        tree = made.take(i)
        for p in tree.values():
            p["up"].zero_()
        made.tables["own"].put(i, tree)
        other.tables["own"].put(i, {key: {"s": p["a"], "d": p["b"]} for key, p in tree.items()})
    with torch.no_grad():
        close(*(run(Adapted(f, [b]), inputs, [1, 0, 2, 3, 3]) for b in (made, other)))
