"""LoRA by hand and against peft: the same weights, the same logits."""

import copy

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, loaded, real, run
from peft import LoraConfig, get_peft_model

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.fold import fold
from anabranch.core.names import make
from anabranch.core.site import find
from anabranch.errors import InputError


def test_by_hand():
    lora = make("delta", {"lora": {"rank": 1, "alpha": 2.0}})
    p = {"a": torch.tensor([[1.0], [2.0]]), "b": torch.tensor([[3.0, 4.0, 5.0]])}
    x = torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    at = At(x, torch.zeros(2, 3), torch.ones(2, dtype=torch.bool))
    assert lora.apply(p, at).tolist() == [[18, 24, 30], [-12, -16, -20]]
    dW, db = lora.weight(p, None, None)
    assert dW.tolist() == [[6, 12], [8, 16], [10, 20]] and db is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
@pytest.mark.parametrize(
    ("name", "modules", "at"),
    [
        ("bert", ["query", "value"], ("attention.query", "attention.value")),
        ("bert", r".*encoder\.layer\.1\.output\.dense", "encoder.layer.1.output.dense"),
        ("gpt2", ["c_attn"], "h.*.attn.c_attn"),
        ("llama", ["q_proj", "down_proj"], ("attention.query", "mlp.out")),
    ],
)
def test_against_peft(name, modules, at):
    f, inputs = backbone(name), batch(name)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=modules, fan_in_fan_out=name == "gpt2", lora_dropout=0.0)
    theirs = get_peft_model(copy.deepcopy(f), config).eval()
    ours = bank(f, {"lora": {"rank": 4, "alpha": 6.0}}, at=at, slots=1)
    layers = {n.removeprefix("base_model.model."): m for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert sorted(layers) == sorted(s.name for s in ours.sites)
    for site in ours.sites:
        p = ours.take(1)[site.key]
        layers[site.name].lora_A["default"].weight.data = p["a"].T.contiguous()
        layers[site.name].lora_B["default"].weight.data = p["b"].T.contiguous()
    with torch.no_grad():
        want = real(inputs, theirs(**inputs).last_hidden_state)
        close(real(inputs, run(Adapted(f, [ours]), inputs, [1] * 5)), want)
        close(real(inputs, loaded(f, fold(f, [(ours, 1, 1.0)]))(**inputs).last_hidden_state), want)


def test_a_rank_beyond_the_layer_is_refused():
    site = find(backbone("bert"), "attention.query")[0]
    with pytest.raises(InputError, match="rank is at most 32 at encoder.layer.0.attention.self.query, got 33"):
        make("delta", {"lora": {"rank": 33}}).init(site, torch.Generator())


@pytest.mark.parametrize("at", ["block", "encoder.layer.*.attention.output", "embedding"])
def test_beside_a_whole_module(at):
    f, inputs = backbone("bert"), batch("bert")
    got = run(Adapted(f, [bank(f, "lora", at=at)]), inputs, [2] * 5)
    assert not torch.allclose(got, f(**inputs).last_hidden_state, atol=1e-3)
