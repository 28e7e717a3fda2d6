"""PiSSA by hand and against peft: the same start, the same answers after training."""

import copy

import pytest
import torch
from laws._nasty import backbone, batch, close, loaded, real, run
from peft import LoraConfig, get_peft_model

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.delta import At
from anabranch.core.fold import fold
from anabranch.core.names import make
from anabranch.core.site import find
from anabranch.errors import InputError


def test_by_hand():
    pissa = make("delta", {"pissa": {"rank": 1}})
    f = torch.nn.Sequential(torch.nn.Linear(2, 3))
    W = torch.tensor([[0.0, 9.0], [4.0, 0.0], [0.0, 0.0]])  # singular values 9 and 4
    p = pissa.init(find(f, "0")[0], torch.Generator(), {"W": W})
    assert (p["a0"] @ p["b0"]).mT.tolist() == [[0, 9], [0, 0], [0, 0]]
    assert p["a0"].abs().flatten().tolist() == [0, 3] and p["b0"].abs().flatten().tolist() == [3, 0, 0]
    x = torch.tensor([[1.0, 2.0]])
    at = At(x, torch.zeros(1, 3), torch.ones(1, dtype=torch.bool))
    assert pissa.apply(p, at).tolist() == [[0, 0, 0]]
    p["a"] = p["a0"] + torch.tensor([[1.0], [0.0]]) * p["b0"].sum().sign()  # x then moves along b0: 3 to the first output
    assert pissa.apply(p, at).tolist() == [[3, 0, 0]]
    assert pissa.weight(p, W, None)[0].tolist() == [[3, 0], [0, 0], [0, 0]]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
@pytest.mark.parametrize(("name", "modules", "at"), [("bert", ["query", "value"], ("attention.query", "attention.value")),
                                                     ("gpt2", ["c_attn"], "h.*.attn.c_attn")])  # fmt: skip
def test_against_peft(name, modules, at):
    f, inputs, rng = backbone(name), batch(name), torch.Generator().manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=3, target_modules=modules, fan_in_fan_out=name == "gpt2", init_lora_weights="pissa")
    theirs = get_peft_model(copy.deepcopy(f), config).eval()
    sites = find(f, at)
    seen = {s.key: {"W": s.weight(f)[0].detach()} for s in sites}
    ours = Bank.make(make("delta", {"pissa": {"rank": 3}}), make("gate", "by_task"), sites, rng, seen)
    layers = {n.removeprefix("base_model.model."): m for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    tree = ours.fresh(rng, seen)
    for site in ours.sites:
        A, B = (getattr(layers[site.name], n)["default"].weight.data for n in ("lora_A", "lora_B"))
        p = tree[site.key]
        close(p["a0"] @ p["b0"], (B @ A).T)
        close(p["a0"].norm(dim=0), A.norm(dim=1))  # the singular value is shared in halves
        A += 0.1 * torch.randn(A.shape, generator=rng)
        B += 0.1 * torch.randn(B.shape, generator=rng)
        p["a"], p["b"] = A.T.clone(), B.T.clone()
    ours.add([tree])
    with torch.no_grad():
        want = real(inputs, theirs(**inputs).last_hidden_state)
        close(real(inputs, run(Adapted(f, [ours]), inputs, [1] * 5)), want, 1e-4)
        close(real(inputs, loaded(f, fold(f, [(ours, 1, 1.0)]))(**inputs).last_hidden_state), want, 1e-4)


def test_what_it_cannot_start_from_is_refused():
    f, pissa, rng = backbone("bert"), make("delta", {"pissa": {"rank": 33}}), torch.Generator()
    query, norm = find(f, "attention.query")[0], find(f, "norm")[0]
    with pytest.raises(InputError, match="rank is at most 32 at encoder.layer.0.attention.self.query, got 33"):
        pissa.init(query, rng, {"W": torch.eye(32)})
    with pytest.raises(InputError, match=r'pissa starts from f .*: expected seen\["W"\], got \[\]'):
        make("delta", "pissa").init(query, rng, {})
    with pytest.raises(InputError, match="pissa sits at linear layers, got embeddings.LayerNorm .a norm."):
        make("delta", "pissa").init(norm, rng, {"W": torch.ones(32)})
