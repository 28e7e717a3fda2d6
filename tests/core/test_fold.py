"""Deltas into weights and back: into f, into one delta, from two state dicts, into a low rank."""

import pytest
import torch
from laws._nasty import IDS, MAKES, D, backbone, bank, batch, close, frozen, loaded, real, run
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from anabranch.core.adapt import Adapted
from anabranch.core.fold import changes, fold
from anabranch.core.names import find as method
from anabranch.core.route import Route
from anabranch.engine.algebra import difference, factor, merge
from anabranch.errors import InputError

mean = method("merge.mean")


def answer(f: nn.Module, name: str = "bert") -> torch.Tensor:
    with torch.no_grad():
        return real(batch(name), f(**batch(name)).last_hidden_state)


def running(f: nn.Module, *banks, slot: int = 2, name: str = "bert") -> torch.Tensor:
    with torch.no_grad():
        return real(batch(name), run(Adapted(f, banks), batch(name), [slot] * len(IDS)))


# ---- changes and fold


def test_a_change_is_the_weight_of_the_delta_in_one_orientation():
    f = backbone("gpt2")
    made = bank(f, "lora", at="attention.value")
    found = changes(f, made, 2)
    assert list(found) == [s.key for s in made.sites] == ["h.0.attn.c_attn[64:96]", "h.1.attn.c_attn[64:96]"]
    for key, (dW, db) in found.items():
        p = made.take(2)[key]
        close(dW, (p["a"] @ p["b"]).T * 2)
        assert db is None


@pytest.mark.parametrize("name", MAKES)
def test_kinds_fold_together_with_their_weights(name):
    f = backbone(name)
    a, b, c = bank(f, "lora"), bank(f, "ia3"), bank(f, {"dense": {"bias": False}})
    close(answer(loaded(f, fold(f, [(a, 2, 1.0), (b, 2, 1.0), (c, 2, 1.0)])), name), running(f, a, b, c, name=name))
    assert torch.equal(answer(loaded(f, fold(f, []))), answer(f)) if name == "bert" else True
    there = loaded(f, fold(f, [(a, 2, 1.0)]))
    close(answer(loaded(there, fold(there, [(a, 2, -1.0)])), name), answer(f, name))


def test_a_later_stage_folds_into_what_the_earlier_made_of_f():
    f = backbone("bert")
    first, second = bank(f, "dense", at="attention.value"), bank(f, "ia3", at="attention.value", stage=1)
    want = running(f, first, second)
    close(answer(loaded(f, fold(f, [(first, 2, 1.0), (second, 2, 1.0)]))), want)
    close(answer(loaded(f, fold(f, [(second, 2, 1.0), (first, 2, 1.0)]))), want)
    assert not torch.allclose(want, running(f, first, bank(f, "ia3", at="attention.value")), atol=1e-3)


def test_a_frozen_bank_in_a_short_type_folds_as_it_runs():
    f = backbone("bert")
    for delta in ("lora", "mask", "dense", "ia3"):
        served = frozen(bank(f, delta), torch.bfloat16)
        close(answer(loaded(f, fold(f, [(served, 2, 1.0)]))), running(f, served))


def test_weights_of_a_short_type_are_rounded_once():
    f = loaded(backbone("bert"), backbone("bert").state_dict()).to(torch.bfloat16)
    made = bank(f, "dense", at="attention.value", spread=1e-4)  # each alone is lost in bf16, sixteen together are not
    state = fold(f, [(made, 2, 16.0)])
    name = f"{made.sites[0].name}.weight"
    W, dW = f.state_dict()[name], made.take(2)[made.sites[0].key]["W"]
    assert state[name].dtype is torch.bfloat16
    assert torch.equal(state[name], (W.double() + 16 * dW.double()).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("delta", "at", "why"),
    [
        ("adapter", "attention.out", "Adapter changes activations, not weights"),
        ("prompt", "embedding", "Prompt changes activations"),
        ("lora", "attention.query->attention.value", "attention.self.value"),  # reads x elsewhere: no weight of f is its sum
        ("lora", "norm", "norm|LayerNorm"),
        ("lora", "block", "block|encoder.layer.0"),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(delta, at, why):
    f = backbone("bert")
    with pytest.raises(InputError, match=why):
        fold(f, [(bank(f, delta, at=at), 1, 1.0)])


def test_tied_weights_are_not_folded_apart():
    f = GPT2LMHeadModel(GPT2Config(n_embd=D, n_layer=1, n_head=4, vocab_size=20)).eval()
    made = bank(f, "dense", at="embedding")
    ids = torch.randint(0, 20, (3, 5))
    with torch.no_grad():
        want = Adapted(f, [made])({"input_ids": ids}, Route.to([2] * 3)).logits
        try:
            got = loaded(f, fold(f, [(made, 2, 1.0)]))(input_ids=ids).logits
        except InputError as error:
            assert "lm_head.weight" in str(error)
        else:
            close(got, want)


# ---- merge


@pytest.mark.parametrize("name", MAKES)
def test_a_merge_runs_as_the_combination_of_the_changes(name):
    f = backbone(name)
    a, b = bank(f, "lora"), bank(f, {"lora": {"rank": 2}}, slots=1)
    merged = merge(f, [(a, 1), (a, 3), (b, 1)], mean)
    assert len(merged) == 1 and type(merged.delta).__name__ == "Dense"
    state = fold(f, [(a, 1, 1 / 3), (a, 3, 1 / 3), (b, 1, 1 / 3)])
    close(running(f, merged, slot=1, name=name), answer(loaded(f, state), name))
    close(answer(loaded(f, fold(f, [(merged, 1, 1.0)])), name), answer(loaded(f, state), name))


def test_what_a_slot_does_not_touch_counts_as_zero():
    f = backbone("bert")
    low, high = bank(f, "dense", at="attention.value[0]"), bank(f, {"offset": {}}, at="attention.value")
    merged = merge(f, [(low, 2), (high, 1)], mean)
    assert [s.key for s in merged.sites] == [low.sites[0].key, high.sites[1].key]
    got, dense = merged.take(1), low.take(2)[low.sites[0].key]
    close(got[low.sites[0].key]["W"], dense["W"] / 2)
    close(got[low.sites[0].key]["b"], (dense["b"] + high.take(1)[high.sites[0].key]["d"]) / 2)
    assert not got[high.sites[1].key]["W"].any()


def test_a_merge_of_one_is_itself_and_the_norm_over_all_sites_is_told():
    f = backbone("bert")
    made, told = bank(f, "lora"), []

    def combine(rows, site, whole):
        told.append((rows.shape[0], site.key, whole["norm"]))
        return rows[0]

    merged = merge(f, [(made, 2), (made, 3)], combine)
    close(running(f, merged, slot=1), running(f, made))
    assert [k for _, k, _ in told if k][: len(made.sites)] == [s.key for s in made.sites]
    norms = [sum(float(dW.norm()) ** 2 for dW, _ in changes(f, made, i).values()) ** 0.5 for i in (2, 3)]
    close(told[0][2], torch.tensor(norms))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(bad):
    f = backbone("bert")
    made = bank(f, "lora")
    made.tables["own"].data[2, -1] = bad
    with pytest.raises(InputError, match=f"slot 2 is not finite at {made.sites[-1].key}"):
        merge(f, [(made, 1), (made, 2)], mean)
    merge(f, [(made, 1), (made, 3)], mean)


def test_merges_that_cannot_be_are_refused():
    f = backbone("bert")
    with pytest.raises(InputError, match="nothing to merge"):
        merge(f, [], mean)
    with pytest.raises(InputError, match="cannot be folded"):
        merge(f, [(bank(f, "adapter"), 1)], mean)
    with pytest.raises(InputError, match="slots 1 to 3, got 4"):
        merge(f, [(bank(f, "lora"), 4)], mean)


# ---- task vectors


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_a_difference_takes_f_to_the_other_weights_and_back(name):
    f = backbone(name)
    g = loaded(f, {n: t + 0.05 * torch.randn_like(t) for n, t in f.state_dict().items()})
    vector = difference(f, g.state_dict())
    close(running(f, vector, slot=1, name=name), answer(g, name), 1e-4)
    state = fold(f, [(vector, 1, 1.0)])
    for n, t in g.state_dict().items():
        close(state[n], t, 1e-6)
    close(answer(loaded(g, fold(g, [(vector, 1, -1.0)])), name), answer(f, name), 1e-4)
    half = difference(f, g.state_dict(), at="attention.value[-1:]")
    assert [s.role for s in half.sites] == ["attention.value"]


def test_a_difference_that_no_site_can_hold_is_said():
    f = backbone("vit")
    g = loaded(f, f.state_dict())
    g.embeddings.cls_token.data += 1
    with pytest.raises(InputError, match="embeddings.cls_token"):
        difference(f, g.state_dict())
    difference(f, g.state_dict(), at="attention.value")  # asked for these alone


def test_state_dicts_of_other_models_are_refused():
    f = backbone("bert")
    with pytest.raises(InputError, match=r"f lacks h\.0\..* and \d+ more; the state dict lacks embeddings.* and \d+ more"):
        difference(f, backbone("gpt2").state_dict())
    state, key = dict(f.state_dict()), "encoder.layer.0.output.dense.bias"
    with pytest.raises(InputError, match="architecture: the state dict lacks encoder.layer.0.output.dense.bias$"):
        difference(f, {n: t for n, t in state.items() if n != key})
    with pytest.raises(InputError, match="architecture: f lacks extra, more$"):
        difference(f, state | {"more": state[key], "extra": state[key]})
    with pytest.raises(InputError, match=rf"{key} is \[{len(state[key])}\] in f and \[3\] in the state dict"):
        difference(f, state | {key: torch.zeros(3)})


def test_a_bank_of_another_backbone_is_not_merged():
    f = backbone("bert")
    wide = type(f)(type(f.config)(**f.config.to_dict() | {"hidden_size": 2 * f.config.hidden_size}))
    for other, said in ((backbone("gpt2"), "BertModel has no module h.0.attn.c_attn"),
                        (wide, "at encoder.layer.0.attention.self.query it goes from 64 to 64 numbers .*, BertModel from 32 to")):  # fmt: skip
        for part in (bank(other, "lora"), 1), (bank(other, "dense"), 2):
            with pytest.raises(InputError, match=f"the bank is of another backbone: {said}"):
                merge(f, [(bank(f, "lora"), 1), part], mean)


def test_a_factor_is_the_best_of_its_rank_and_says_what_it_loses():
    f = backbone("bert")
    made = bank(f, {"lora": {"rank": 3}})
    dense = merge(f, [(made, 2)], mean)
    low, lost = factor(dense, 1, 3)
    assert lost < 1e-10 and low.delta.rank == 3
    close(running(f, low, slot=1), running(f, made))
    one, lost = factor(dense, 1, 1)
    total = left = 0.0
    for site in dense.sites:
        s = torch.linalg.svdvals(dense.take(1)[site.key]["W"])
        total, left = total + float((s**2).sum()), left + float((s[1:] ** 2).sum())
    assert lost == pytest.approx(left / total, rel=1e-4) and 0 < lost < 1
    whole = bank(f, "dense", at=["attention.value", "norm"])
    _, lost = factor(whole, 1, D)
    rest = sum(float(t.norm()) ** 2 for k, p in whole.take(1).items() for n, t in p.items() if n == "b" or "Norm" in k)
    assert lost == pytest.approx(rest / sum(float(t.norm()) ** 2 for p in whole.take(1).values() for t in p.values()), rel=1e-4)
