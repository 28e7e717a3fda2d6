"""Where in f: roles, patterns, slices, regions, orientation, depth, clones and tails, on backbones of many makes."""

import pytest
import torch
from laws._nasty import MAKES, TEXT, backbone, batch
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from anabranch.core.site import blocks, capture, clone, find, tail, width
from anabranch.errors import InputError

ROLE_SITES = {
    "bert": {
        "attention.query": "encoder.layer.0.attention.self.query",
        "attention.key": "encoder.layer.0.attention.self.key",
        "attention.value": "encoder.layer.0.attention.self.value",
        "attention.out": "encoder.layer.0.attention.output.dense",
        "mlp.in": "encoder.layer.0.intermediate.dense",
        "mlp.out": "encoder.layer.0.output.dense",
        "embedding": "embeddings",
        "block": "encoder.layer.0",
        "norm": "embeddings.LayerNorm",
    },
    "llama": {
        "attention.query": "layers.0.self_attn.q_proj",
        "attention.key": "layers.0.self_attn.k_proj",
        "attention.value": "layers.0.self_attn.v_proj",
        "attention.out": "layers.0.self_attn.o_proj",
        "mlp.gate": "layers.0.mlp.gate_proj",
        "mlp.in": "layers.0.mlp.up_proj",
        "mlp.out": "layers.0.mlp.down_proj",
        "embedding": "embed_tokens",
        "block": "layers.0",
        "norm": "layers.0.input_layernorm",
    },
    "gpt2": {
        "attention.query": "h.0.attn.c_attn[0:32]",
        "attention.key": "h.0.attn.c_attn[32:64]",
        "attention.value": "h.0.attn.c_attn[64:96]",
        "attention.out": "h.0.attn.c_proj",
        "mlp.in": "h.0.mlp.c_fc",
        "mlp.out": "h.0.mlp.c_proj",
        "embedding": "wte",
        "block": "h.0",
        "norm": "h.0.ln_1",
    },
    "vit": {
        "attention.query": "layers.0.attention.q_proj",
        "attention.key": "layers.0.attention.k_proj",
        "attention.value": "layers.0.attention.v_proj",
        "attention.out": "layers.0.attention.o_proj",
        "mlp.in": "layers.0.mlp.fc1",
        "mlp.out": "layers.0.mlp.fc2",
        "embedding": "embeddings",
        "block": "layers.0",
        "norm": "layers.0.layernorm_before",
    },
}
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
T5 = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=40)
OTHERS = {
    "distilbert": lambda: DistilBertModel(DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=40)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZE)),
    "mistral": lambda: MistralModel(MistralConfig(**SIZE, num_key_value_heads=1)),
    "t5": lambda: T5EncoderModel(T5),
}


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8))
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


# ---- finding


@pytest.mark.parametrize("name", MAKES)
def test_a_role_is_the_same_place_in_every_make(name):
    f = backbone(name)
    for role, first in ROLE_SITES[name].items():
        sites = find(f, role)
        assert sites[0].key == first
        assert len(sites) == (1 if role == "embedding" else len(sites) if role == "norm" else 2)
        assert {s.role for s in sites} == {role}
    inner = 128 if name == "gpt2" else 64
    for role, size in (("attention.query", (32, 32)), ("mlp.in", (32, inner)), ("mlp.out", (inner, 32)), ("norm", (32, 32))):
        assert {(s.d_in, s.d_out) for s in find(f, role)} == {size}
    assert [s.depth for s in find(f, "attention.query")] == [0, 1]
    assert find(f, "embedding")[0].depth == -1 and find(f, "output")[0].depth == 2


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("role", ["attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out"])
def test_roles_are_found_in_their_relatives(name, role):
    sites = find(OTHERS[name](), role)
    assert [s.depth for s in sites] == [0, 1] and {s.kind for s in sites} == {"linear"}


def test_a_role_means_nothing_twice():
    for name in MAKES:
        found = [s.key for role in ROLE_SITES[name] for s in find(backbone(name), role) if role != "block"]
        assert len(found) == len(set(found))


def test_globs_paths_and_lists():
    f = backbone("bert")
    dense = [s.key for s in find(f, "encoder.layer.*.output.dense")]
    assert "encoder.layer.1.output.dense" in dense and len(dense) == 4  # also those of the attention: * crosses dots
    assert [s.key for s in find(f, "encoder.layer.1.output.dense")] == ["encoder.layer.1.output.dense"]
    both = find(f, ["attention.query", "mlp.out", "attention.query"])
    assert [s.role for s in both] == ["attention.query"] * 2 + ["mlp.out"] * 2
    assert [s.key for s in find(Mlp(), "body.*")] == ["body.0", "body.1", "body.2", "body.3"]
    assert [s.kind for s in find(Mlp(), "body.*")] == ["linear", "module", "linear", "norm"]
    assert not find(Mlp(), "head")[0].biased and find(Mlp(), "body.0")[0].biased


@pytest.mark.parametrize(
    ("cut", "depths"),
    [("[-1:]", [1]), ("[-2:]", [0, 1]), ("[0]", [0]), ("[-1]", [1]), ("[:1]", [0]), ("[::2]", [0]), ("[1:2]", [1])],
)
def test_slices_are_over_blocks(cut, depths):
    for name in MAKES:
        assert [s.depth for s in find(backbone(name), "attention.value" + cut)] == depths
        assert [s.depth for s in find(backbone(name), ["attention.value" + cut, "block" + cut])] == depths * 2


def test_a_slice_leaves_out_what_is_in_no_block():
    assert len(find(backbone("bert"), "norm")) == 5 and len(find(backbone("bert"), "norm[:]")) == 4


def test_regions_read_here_and_write_there():
    f = backbone("bert")
    first, second = find(f, "attention.query->mlp.out")
    assert (first.read, first.name) == ("encoder.layer.0.attention.self.query", "encoder.layer.0.output.dense")
    assert (first.d_in, first.d_out, first.depth, first.role) == (32, 32, 0, "region")
    assert first.key == f"{first.read}->{first.name}" != second.key
    assert [s.depth for s in find(f, "mlp.in->mlp.out[-1]")] == [1]
    assert find(f, "mlp.in->mlp.out")[0].weight(f) == (None, None)


def test_a_region_of_unequal_ends_is_refused():
    with pytest.raises(InputError, match="norm->mlp.out.*5.*2"):
        find(backbone("bert"), "norm->mlp.out")


def test_a_region_that_would_read_tokens_is_refused():
    with pytest.raises(InputError, match="embeddings.word_embeddings reads numbers of tokens: begin it at a module behind"):
        find(backbone("bert"), "embeddings.word_embeddings->encoder.layer.0.output.dense")


@pytest.mark.parametrize(
    ("at", "hint"),
    [
        ("attention.qery", "matches 'attention.qery'; did you mean attention.query"),
        ("encoder.layer.0.output.dens", "did you mean encoder.layer.0.output.dense"),
        ("mlp.gate", "BertModel matches 'mlp.gate'; did you mean mlp.out or mlp.in"),
        ("attention.query[5:]", "attention.query"),
        ("attention.query[a:]", r"blocks are cut as in Python, for example attention.query\[-2:\], got 'attention.query\[a:\]'"),
        ("mlp.in->", "'mlp.in->' reads at 2 modules and writes at 0"),
        ("", "no site of BertModel matches ''"),
    ],
)
def test_what_matches_nothing_is_answered_with_the_nearest(at, hint):
    with pytest.raises(InputError, match=hint):
        find(backbone("bert"), at)


def test_blocks_are_the_outer_list_not_the_experts_inside():
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 4)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(Expert() for _ in range(5))

    f = nn.Module()
    f.layers = nn.ModuleList(Block() for _ in range(2))
    assert blocks(f)[0] == "layers" and len(find(f, "block")) == 2
    assert [s.depth for s in find(f, "layers.1.experts.*.up")] == [1] * 5
    assert blocks(Mlp())[0] == "" and find(Mlp(), "body.0")[0].depth == 0


def test_width_is_what_the_config_or_the_first_layer_says():
    assert {width(backbone(n)) for n in MAKES} == {32} and width(Mlp()) == 8 and width(nn.ReLU()) == 0


# ---- weights


@pytest.mark.parametrize("name", MAKES)
def test_weights_have_one_orientation(name):
    f = backbone(name)
    for site in find(f, ["attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out"]):
        x = torch.randn(3, site.d_in)
        W, b = site.weight(f)
        assert W.shape == (site.d_out, site.d_in) and (b is None) == (not site.biased)
        y = x @ W.mT + (0 if b is None else b)
        torch.testing.assert_close(site.module(f)(x)[:, site.columns], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MAKES)
def test_put_adds_to_the_right_columns_of_a_state_dict_and_leaves_f_alone(name):
    f = backbone(name)
    before = {n: t.clone() for n, t in f.state_dict().items()}
    state = dict(f.state_dict())
    site = find(f, "attention.value")[1]
    W, _ = site.weight(f)
    dW = torch.randn(W.shape)
    site.put(state, dW, None)
    g = clone(f)
    assert [n for n in state if not torch.equal(state[n], before[n])] == [f"{site.name}.weight"]
    new = nn.Module()
    new.weight = state[f"{site.name}.weight"]
    moved = new.weight - before[f"{site.name}.weight"]
    moved = moved.mT if site.kind == "transposed" else moved
    torch.testing.assert_close(moved[site.columns], dW, rtol=1e-4, atol=1e-6)
    assert moved.abs().sum() == moved[site.columns].abs().sum()
    assert all(torch.equal(t, before[n]) for n, t in g.state_dict().items())


def test_put_says_what_cannot_be_folded():
    site = find(backbone("llama"), "mlp.in")[0]
    with pytest.raises(InputError, match="layers.0.mlp.up_proj has no bias.*keep it as a delta"):
        site.put(dict(backbone("llama").state_dict()), None, torch.zeros(64))


# ---- clones and tails


def test_a_clone_shares_every_tensor_and_no_hook():
    f = backbone("bert")
    g = clone(f)
    assert [n for n, _ in g.named_modules()] == [n for n, _ in f.named_modules()]
    assert all(a is b for a, b in zip(f.parameters(), g.parameters(), strict=True))
    assert all(a is b for a, b in zip(f.buffers(), g.buffers(), strict=True)) and g.config is f.config
    calls: list[int] = []
    g.encoder.layer[0].register_forward_hook(lambda *a: calls.append(1))
    f(**batch("bert"))
    assert not calls
    g(**batch("bert"))
    assert calls


def test_a_clone_keeps_tied_weights_tied():
    f = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20))
    assert clone(f).lm_head.weight is f.transformer.wte.weight


@pytest.mark.parametrize("name", [*MAKES, "distilbert", "roberta", "mistral", "modernbert"])
def test_a_tail_gives_the_bits_of_the_whole(name):
    if name in MAKES:
        f, inputs = backbone(name), batch(name)
    else:
        modern = ModernBertConfig(**SIZE, pad_token_id=0, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2)
        f = (OTHERS | {"modernbert": lambda: ModernBertModel(modern)})[name]().eval()
        inputs = batch("bert")
        inputs["input_ids"] = inputs["input_ids"].clamp(max=39)
    with torch.no_grad():
        for k in range(3):
            got: list[torch.Tensor] = []
            handle = capture(f, k, got)
            whole = f(**inputs).last_hidden_state
            handle.remove()
            assert len(got) == 1 and got[0].ndim == 3
            short = tail(f, k)
            short.features = got[0]
            assert torch.equal(short(**inputs).last_hidden_state, whole)
            short.features = torch.zeros_like(got[0])
            assert torch.equal(short(**inputs).last_hidden_state, whole) == (k == 0)  # the first block's is f's own
        assert torch.equal(f(**inputs).last_hidden_state, whole)  # f itself is as it was


def test_a_tail_begins_at_a_block():
    for k in (-1, 3):
        with pytest.raises(InputError, match=rf"f has 2 blocks, got tail\({k}\)"):
            tail(backbone("bert"), k)
    with pytest.raises(InputError, match="T5EncoderModel hand on more than hidden states"):
        tail(OTHERS["t5"](), 1)


def test_encoder_decoder_roles_are_in_both_stacks():
    names = [s.key for s in find(T5Model(T5), "attention.query")]
    assert sum("encoder.block" in n for n in names) == 2 and sum("decoder.block" in n for n in names) == 4
    assert MAKES[:3] == TEXT
