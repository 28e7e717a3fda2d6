"""Hydra by hand, and its exact fold on every kind of layer."""

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, loaded, real, run

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.fold import fold
from anabranch.core.names import make
from anabranch.core.site import find
from anabranch.errors import InputError


def test_by_hand():
    hydra = make("delta", {"hydra": {"rank": 1, "scale": 2.0}})
    W, bias = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), torch.tensor([1.0, 0.0, -1.0])
    x = torch.tensor([[1.0, 2.0]])  # y = 2 4 2
    p = {"a": torch.tensor([[1.0], [1.0]]), "b": torch.tensor([[1.0, 0.0, 2.0]]),
         "c": torch.tensor([[1.0], [0.0], [1.0]]), "e": torch.tensor([[0.0, 3.0, 1.0]])}  # fmt: skip
    at = At(x, x @ W.T + bias, torch.ones(1, dtype=torch.bool), W, bias)
    assert hydra.apply(p, at).tolist() == [[6.0, 24.0, 20.0]]  # 2 (3 [1 0 2] + 4 [0 3 1])
    dW, db = hydra.weight(p, W, bias)
    assert dW.tolist() == [[2, 2], [12, 6], [8, 6]]
    assert db.tolist() == [0, 0, 0]  # c reads 1 + 0 - 1 of the bias
    assert torch.equal(x @ dW.T + db, hydra.apply(p, at))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_folded_it_is_the_same_within_1e_5(name):
    f, inputs = backbone(name), batch(name)
    made = bank(f, "hydra", spread=0.05)
    with torch.no_grad():
        want = real(inputs, run(Adapted(f, [made]), inputs, [1] * 5))
        close(real(inputs, loaded(f, fold(f, [(made, 1, 1.0)]))(**inputs).last_hidden_state), want, 1e-5)


def test_without_the_branch_behind_it_is_lora():
    f, inputs = backbone("bert"), batch("bert")
    ours, lora = bank(f, {"hydra": {"rank": 3}}), bank(f, {"lora": {"rank": 3, "alpha": 6}}, at=("attention.out", "mlp.out"))
    tree = ours.take(1)
    slot = ours.add([{s: p | {"e": torch.zeros_like(p["e"])} for s, p in tree.items()}])
    same = lora.add([{s: {"a": p["a"], "b": p["b"]} for s, p in tree.items()}])
    close(run(Adapted(f, [ours]), inputs, slot * 5), run(Adapted(f, [lora]), inputs, same * 5))


def test_a_rank_beyond_the_layer_is_refused():
    with pytest.raises(InputError, match=r"rank is at most 32 at encoder.layer.0.output.dense, got 40"):
        make("delta", {"hydra": {"rank": 40}}).init(find(backbone("bert"), "mlp.out")[0], torch.Generator())
