"""Sequential LoRA by hand: it re-mixes the layer's output, bias included, and folds exactly."""

import torch
from laws._nasty import backbone, bank, batch, close, loaded, real, run

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.fold import fold
from anabranch.core.names import make


def test_by_hand():
    lora = make("delta", {"seq_lora": {"rank": 1, "alpha": 2.0}})
    p = {"a": torch.tensor([[1.0], [0.0]]), "b": torch.tensor([[3.0, 4.0]])}
    W, b0 = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]), torch.tensor([5.0, 6.0])
    x = torch.tensor([[1.0, 1.0, 1.0]])  # y = 8 8
    at = At(x, x @ W.T + b0, torch.ones(1, dtype=torch.bool), W, b0)
    assert lora.apply(p, at).tolist() == [[48, 64]]
    dW, db = lora.weight(p, W, b0)
    assert dW.tolist() == [[6, 12, 0], [8, 16, 0]] and db.tolist() == [30, 40]


def test_it_is_f_with_a_low_rank_map_behind_each_layer():
    f, inputs = backbone("gpt2"), batch("gpt2")
    made = bank(f, {"seq_lora": {"rank": 3, "alpha": 3.0}})
    state = dict(f.state_dict())
    for site in made.sites:
        p = made.take(2)[site.key]
        move = torch.eye(site.d_out) + p["a"] @ p["b"]
        for name in (f"{site.name}.weight", f"{site.name}.bias"):  # weights of this make are [d_in, d_out]
            state[name] = state[name] @ move
    with torch.no_grad():
        want = real(inputs, loaded(f, state)(**inputs).last_hidden_state)
        close(real(inputs, run(Adapted(f, [made]), inputs, [2] * 5)), want)
        close(real(inputs, loaded(f, fold(f, [(made, 2, 1.0)]))(**inputs).last_hidden_state), want)
