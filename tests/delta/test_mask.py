"""Masks: f's own weights, some of them switched off; the gradient passes the threshold; one bit a weight."""

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, frozen, loaded, real, run
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import find
from anabranch.errors import InputError


def test_it_switches_weights_off():
    f, inputs = backbone("gpt2"), batch("gpt2")
    made = bank(f, "mask")
    state = dict(f.state_dict())
    for site in made.sites:
        keep = (made.take(1)[site.key]["score"] > 0).T  # weights of this make are [d_in, d_out]
        key = f"{site.name}.weight"
        state[key] = state[key].clone()
        state[key][:, site.columns] *= keep
        assert 0.2 < keep.float().mean() < 0.8
    with torch.no_grad():
        want = loaded(f, state)(**inputs).last_hidden_state
        close(real(inputs, run(Adapted(f, [made]), inputs, [1] * 5)), real(inputs, want))


def test_the_gradient_of_a_score_is_that_of_its_mask():
    f = nn.Sequential(nn.Linear(3, 2))
    made, x, g = bank(f, "mask", at="0", slots=1), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
    adapted = Adapted(f, [made])
    source = adapted.sources[0]["own"] = made.tables["own"].data.clone().requires_grad_()
    (adapted({"input": x}, Route.to([1])) * g).sum().backward()
    close(source.grad[1].view(2, 3), (g[0].T @ x[0]) * f[0].weight.detach())


def test_bits_are_an_eighth_of_a_byte_each():
    mask = make("delta", "mask")
    score = torch.tensor([[1.0, -1.0, 0.0], [2.0, -3.0, 1e-9]])
    assert mask.freeze({"score": score})["bits"].tolist() == [0b101001]  # the first weight is the lowest bit
    W = torch.arange(1.0, 7.0).view(2, 3)
    for p in ({"score": score}, mask.freeze({"score": score})):
        dW, db = mask.weight(p, W, None)
        assert (W + dW).tolist() == [[1, 0, 0], [4, 0, 6]] and db is None
    made = frozen(bank(backbone("bert"), "mask"))
    assert made.tables["fixed.uint8"].n == sum(s.d_in * s.d_out for s in made.sites) // 8 and made.tables["own"].n == 0
    assert mask.freeze({"score": torch.ones(3, 11)})["bits"].tolist() == [255, 255, 255, 255, 1]


def test_a_score_stays_when_it_exceeds_the_threshold():
    mask, W = make("delta", {"mask": {"threshold": 0.005}}), torch.ones(1, 4)
    score = torch.tensor([[0.006, 0.005, 0.004, -1.0]])
    for p in ({"score": score}, mask.freeze({"score": score})):
        assert (W + mask.weight(p, W, None)[0]).tolist() == [[1, 0, 0, 0]]


def test_it_starts_as_sparse_as_it_is_told():
    site = find(backbone("bert"), "mlp.in")[0]  # 64 x 32
    mask = make("delta", {"mask": {"sparsity": 0.05, "threshold": 0.005}})
    score = mask.init(site, torch.Generator().manual_seed(1))["score"]
    off = score <= 0.005
    assert score.shape == (64, 32) and off.sum() == round(0.05 * 64 * 32) == 102
    close(score[off], torch.zeros(102), 1e-9)
    close(score[~off], torch.full((64 * 32 - 102,), 0.01), 1e-9)
    again, other = (mask.init(site, torch.Generator().manual_seed(i))["score"] for i in (1, 2))
    assert torch.equal(score, again) and not torch.equal(score, other)
    assert (make("delta", "mask").init(site, torch.Generator())["score"] > 0).all()


def test_what_is_no_mask_is_refused():
    f = backbone("bert")
    with pytest.raises(
        InputError, match="a mask sits at linear layers, got embeddings.LayerNorm .a norm.; use at: attention.value"
    ):
        bank(f, "mask", at="norm")
    with pytest.raises(InputError, match="start is above threshold, .* above 0.01, got 0.01"):
        bank(f, {"mask": {"threshold": 0.01}})
    with pytest.raises(InputError, match="sparsity is a number in .0, 1., got 5: for 5 per cent pass 0.05"):
        make("delta", {"mask": {"sparsity": 5}})
