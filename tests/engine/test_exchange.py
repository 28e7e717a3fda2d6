"""PEFT's own code is the reference, both ways, on tiny random models; exports are read back by transformers.

Equality is held in float64, where f's rounding is out of the way: to 1e-10, and to 1e-6 where a bank in fp32 holds b
times PEFT's scale.
"""

import copy
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from laws._nasty import TEXT, D, backbone, bank, batch, real, run
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from anabranch.core.adapt import Adapted, Route
from anabranch.core.bank import Bank
from anabranch.engine.backbone import Backbone, load
from anabranch.engine.cache import read_tensors
from anabranch.engine.exchange import from_peft, to_hf, to_peft
from anabranch.errors import InputError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it

TARGETS = {"bert": ["query", "dense"], "gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "v_proj", "down_proj"]}
SMALL = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
LAYER0 = {"bert": r"layer\.0\.attention\.self\.query", "gpt2": r"^h\.0\.attn\.c_attn", "llama": r"layers\.0\.self_attn\.q_proj"}
SETTINGS = {
    "plain": lambda name: {"lora_alpha": 16},
    "no scale given": lambda name: {},
    "rslora": lambda name: {"lora_alpha": 3, "use_rslora": True},
    "ranks": lambda name: {"lora_alpha": 3, "rank_pattern": {LAYER0[name]: 5, TARGETS[name][1]: 2}},
    "alphas": lambda name: {"rank_pattern": {LAYER0[name]: 5}, "alpha_pattern": {LAYER0[name]: 7, TARGETS[name][1]: 20}},
    "ranks and rslora": lambda name: {
        "rank_pattern": {LAYER0[name]: 5},
        "alpha_pattern": {TARGETS[name][0]: 9},
        "use_rslora": True,
    },
    "every layer": lambda name: {"target_modules": "all-linear"},
    "some layers": lambda name: {"layers_to_transform": [1], "layers_pattern": ["layer", "h", "layers"]},
}


def exact(name: str) -> nn.Module:
    return copy.deepcopy(backbone(name)).double()


def with_peft(f: nn.Module, folder: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(copy.deepcopy(f), str(folder)).eval()


def adapter(f: nn.Module, folder: Path, **config: object) -> nn.Module:
    """A random LoRA of PEFT's on a copy of f, saved in ``folder``."""
    torch.manual_seed(3)
    made = peft.get_peft_model(copy.deepcopy(f), peft.LoraConfig(**{"r": 4, "init_lora_weights": False} | config)).eval()
    for name, p in made.named_parameters():
        if "lora_" in name:
            p.data = (0.2 * torch.randn(p.shape)).to(p.dtype)
    made.save_pretrained(str(folder))
    return made


def features(f: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return real(inputs, f(**inputs).last_hidden_state)


@torch.no_grad()
def adapted(f: nn.Module, made: Bank, inputs: dict[str, Tensor], slot: int = 1) -> Tensor:
    return real(inputs, run(Adapted(f, [made]), inputs, [slot] * len(inputs["input_ids"])))


def same(a: Tensor, b: Tensor, size: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=size)


def edit(folder: Path, **config: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


# ---- out to PEFT


@pytest.mark.parametrize(
    "at", [["attention.query", "attention.value"], ["attention.*", "mlp.in", "mlp.out"], "attention.key[-1:]"]
)
@pytest.mark.parametrize("name", TEXT)
def test_peft_answers_like_the_slot(name, at, tmp_path):
    roles = ["attention.query", "attention.key", "attention.value", "attention.out"]
    at = [r for a in at for r in (roles if a == "attention.*" else [a])] if isinstance(at, list) else at
    f, inputs = exact(name), batch(name)
    made = bank(f, {"lora": {"rank": 3, "alpha": 5.0}}, at=at)
    theirs = with_peft(f, to_peft(f, made, 2, tmp_path / "out", "some/base"))
    same(features(theirs, inputs), adapted(f, made, inputs, 2))
    assert (features(theirs, inputs) - features(f, inputs)).abs().max() > 0.01
    assert {n for n, m in theirs.get_base_model().named_modules() if hasattr(m, "lora_A")} == {s.name for s in made.sites}


@pytest.mark.parametrize("name", TEXT)
def test_peft_answers_like_the_slot_in_float32_and_from_a_bank_in_bf16(name, tmp_path):
    f, inputs, made = backbone(name), batch(name), bank(backbone(name), "lora")
    same(features(with_peft(f, to_peft(f, made, 1, tmp_path / "a", "x")), inputs), adapted(f, made, inputs), 2e-6)
    made.to(torch.bfloat16)
    same(features(with_peft(f, to_peft(f, made, 1, tmp_path / "b", "x")), inputs), adapted(f, made, inputs), 2e-6)
    assert {t.dtype for t in load_file(tmp_path / "b" / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_slices_of_c_attn_are_blocks_of_one_lora(tmp_path):
    f = backbone("gpt2")
    made = bank(f, {"lora": {"rank": 3, "alpha": 5.0}}, at=["attention.query", "attention.value"])
    folder = to_peft(f, made, 1, tmp_path, "gpt2")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (6, 10, True)
    assert config["target_modules"] == ["h.0.attn.c_attn", "h.1.attn.c_attn"]
    assert config["base_model_name_or_path"] == "gpt2"
    tensors = load_file(folder / "adapter_model.safetensors")
    A, B = (tensors[f"base_model.model.h.0.attn.c_attn.lora_{n}.weight"] for n in "AB")
    q, v = (made.take(1)[f"h.0.attn.c_attn[{cut}]"] for cut in ("0:32", "64:96"))
    assert torch.equal(A, torch.cat([q["a"].mT, v["a"].mT]))
    assert torch.equal(B[:32, :3], q["b"].mT) and torch.equal(B[64:, 3:], v["b"].mT)
    assert not B[:32, 3:].any() and not B[32:64].any() and not B[64:, :3].any()


class Nested(nn.Module):
    """``fc`` and ``inner.fc``: a list of names would make PEFT take both for the first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.inner = nn.Linear(6, 6), nn.Sequential()
        self.inner.add_module("fc", nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.fc(x).tanh())


def test_names_that_end_alike_are_told_apart(tmp_path):
    torch.manual_seed(0)
    f, x = Nested().double(), torch.randn(2, 3, 6, dtype=torch.double)
    made = bank(f, {"lora": {"rank": 2}}, at="fc")
    theirs = with_peft(f, to_peft(f, made, 1, tmp_path, "x"))
    with torch.no_grad():
        same(theirs(x), Adapted(f, [made])({"x": x}, Route.to([1, 1])))
    assert isinstance(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"], str)


@pytest.mark.parametrize(
    ("delta", "at", "words"),
    [
        ("ia3", None, "Ia3"),
        ("prompt", None, "Prompt"),
        ("lora", "block", "Lora at encoder.layer.0"),
        ("lora", "attention.query->attention.out", "->"),
    ],
)
def test_what_peft_files_cannot_hold_is_named(delta, at, words, tmp_path):
    f = backbone("bert")
    at = "*self.query->*attention.output.dense" if at and "->" in at else at
    with pytest.raises(InputError, match=words):
        to_peft(f, bank(f, delta, at=at), 1, tmp_path / "out", "x")
    assert not (tmp_path / "out").exists()


def test_only_what_is_there_can_be_written_and_only_into_a_folder(tmp_path):
    f = backbone("bert")
    with pytest.raises(InputError, match="slots 1 to 3, got 4"):
        to_peft(f, bank(f, "lora"), 4, tmp_path, "x")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        to_peft(f, bank(f, "lora"), 1, tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_in_the_folder_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "mine.json").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").symlink_to(tmp_path / "mine.json")
    to_peft(backbone("bert"), bank(backbone("bert"), "lora"), 1, tmp_path / "out", "x")
    assert (tmp_path / "mine.json").read_text() == "mine"
    assert not (tmp_path / "out" / "adapter_config.json").is_symlink()


# ---- in from PEFT


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", TEXT)
def test_a_bank_answers_like_the_adapter(name, setting, tmp_path):
    f, inputs = exact(name), batch(name)
    fan = {"fan_in_fan_out": True} if name == "gpt2" else {}
    theirs = adapter(f, tmp_path, **{"target_modules": TARGETS[name]} | fan | SETTINGS[setting](name))
    made = from_peft(f, tmp_path)
    same(adapted(f, made, inputs), features(theirs, inputs), 1e-6)
    assert (features(theirs, inputs) - features(f, inputs)).abs().max() > 0.01
    assert len(made) == 1 and made.delta.alpha == made.delta.rank
    assert made.delta.rank == (5 if "ranks" in setting or setting == "alphas" else 4)


def test_there_and_back(tmp_path):
    for name in TEXT:
        f, inputs = exact(name), batch(name)
        made = bank(f, {"lora": {"rank": 3, "alpha": 5.0}})
        back = from_peft(f, to_peft(f, made, 3, tmp_path / name, "x"))
        same(adapted(f, back, inputs), adapted(f, made, inputs, 3), 1e-6)  # the scale 5/3 is folded into b in fp32


def causal(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "gpt2":
        dry = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        f = GPT2LMHeadModel(GPT2Config(n_embd=D, n_layer=2, n_head=4, vocab_size=50, bos_token_id=0, eos_token_id=0, **dry))
    else:
        f = LlamaForCausalLM(LlamaConfig(**SMALL, pad_token_id=0))
    for p in f.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return f.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_are_equal_both_ways(name, tmp_path):
    f, inputs = causal(name), batch(name)
    theirs = adapter(f, tmp_path / "in", target_modules=TARGETS[name], task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2")
    made = from_peft(f, tmp_path / "in")
    ours = Adapted(f, [made])(inputs, Route.to([1] * 5)).logits
    same(ours[inputs["attention_mask"].bool()], theirs(**inputs).logits[inputs["attention_mask"].bool()], 1e-6)
    again = with_peft(f, to_peft(f, made, 1, tmp_path / "out", "x"))
    same(ours[inputs["attention_mask"].bool()], again(**inputs).logits[inputs["attention_mask"].bool()])


def test_an_adapter_of_a_model_with_a_head_fits_the_model_without_and_the_other_way(tmp_path):
    f, inputs = causal("gpt2"), batch("gpt2")
    theirs = adapter(f, tmp_path / "a", target_modules=["c_attn"], fan_in_fan_out=True)
    same(
        adapted(f.transformer, from_peft(f.transformer, tmp_path / "a"), inputs),
        features(theirs.get_base_model().transformer, inputs),
        1e-6,
    )
    theirs = adapter(f.transformer, tmp_path / "b", target_modules=["c_attn"], fan_in_fan_out=True)
    made = from_peft(f, tmp_path / "b")
    assert {s.name for s in made.sites} == {"transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"}
    with torch.no_grad():
        hidden = Adapted(f, [made])(inputs | {"output_hidden_states": True}, Route.to([1] * 5)).hidden_states[-1]
    same(real(inputs, hidden), features(theirs, inputs), 1e-6)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    f = BertForSequenceClassification(BertConfig(**SMALL, **dry, num_labels=3)).double().eval()
    for p in f.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return f


def test_a_task_head_is_left_out_and_said_so(tmp_path):
    f, inputs = classifier(), batch("bert")
    theirs = adapter(f, tmp_path, target_modules=["query", "value"], task_type="SEQ_CLS")
    with pytest.warns(UserWarning, match="the head classifier is not part of f"):
        made = from_peft(f.bert, tmp_path)
    same(adapted(f.bert, made, inputs), features(theirs.get_base_model().bert, inputs), 1e-6)


def test_a_part_of_f_that_was_trained_whole_is_refused(tmp_path):
    adapter(backbone("bert"), tmp_path, target_modules=["query"], modules_to_save=["output.LayerNorm"])
    with pytest.raises(InputError, match="LayerNorm.* is not part of a plain, finite LoRA; fold the adapter"):
        from_peft(backbone("bert"), tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own about these
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "lora_only"}, "bias 'lora_only' is not supported, only 'none'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"lora_bias": True}, "lora_bias True"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' changed f itself; save it"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_real_variants_of_lora_are_named(config, words, tmp_path):
    f = backbone("bert")
    made = peft.get_peft_model(copy.deepcopy(f), peft.LoraConfig(r=4, target_modules=["query"], **config))
    made.save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match=words):
        from_peft(f, tmp_path)


@pytest.mark.parametrize("kind", ["IA3Config", "LoHaConfig", "PromptTuningConfig"])
def test_other_methods_are_named(kind, tmp_path):
    settings = {
        "IA3Config": {"target_modules": ["query"], "feedforward_modules": []},
        "LoHaConfig": {"target_modules": ["query"]},
        "PromptTuningConfig": {"num_virtual_tokens": 2, "task_type": "FEATURE_EXTRACTION"},
    }[kind]
    f = copy.deepcopy(backbone("bert"))
    peft.get_peft_model(f, getattr(peft, kind)(**settings)).save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="peft_type .* is not supported, only 'LORA'"):
        from_peft(backbone("bert"), tmp_path)


def test_lora_on_an_embedding_is_refused(tmp_path):
    adapter(backbone("bert"), tmp_path, target_modules=["word_embeddings"])
    with pytest.raises(InputError, match="word_embeddings.* is not part of a plain, finite LoRA"):
        from_peft(backbone("bert"), tmp_path)


@pytest.fixture
def plain(tmp_path):
    adapter(backbone("bert"), tmp_path / "a", target_modules=["query"])
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, k: t | {k: t[k][:, :5].contiguous()}, r"expected A \[r, 32\] and B \[32, r\].*another f"),
        (lambda t, k: {n: v for n, v in t.items() if n != k}, r"got \{'B': \[32, 4\]\}"),
        (lambda t, k: t | {k: t[k] * torch.nan}, "not part of a plain, finite LoRA"),
        (
            lambda t, k: t | {k.replace("query", "querry"): t[k].clone()},
            "querry, no module of BertModel; did you mean .*self.query",
        ),
        (lambda t, k: t | {k.replace("weight", "bias"): t[k][:, 0].contiguous()}, "lora_A.bias"),
        (lambda t, k: t | {k: t[k][:0].contiguous()}, "not part of a plain, finite LoRA"),
        (lambda t, k: {}, "holds no LoRA"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, words, plain):
    path = plain / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors, sorted(k for k in tensors if "lora_A" in k)[0]), path)
    with pytest.raises(InputError, match=words):
        from_peft(backbone("bert"), plain)


def test_an_adapter_of_another_make_is_refused(plain):
    with pytest.raises(InputError, match="adapts encoder.layer.0.attention.self.query, no module of LlamaModel"):
        from_peft(backbone("llama"), plain)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "adapter_config.json is damaged or no json"), ("[1]", "damaged or no json"), ("3", "damaged"), ("\xff", "damaged")],
)
def test_a_damaged_config_is_named(text, words, plain):
    (plain / "adapter_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=words):
        from_peft(backbone("bert"), plain)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"lora_alpha": "big"}, "lora_alpha is a number, got 'big'"),
        ({"alpha_pattern": {"*.x": 1}}, "alpha_pattern is .regular expression: number"),
    ],
)
def test_a_wrong_setting_is_named(config, words, plain):
    edit(plain, **config)
    with pytest.raises(InputError, match=words):
        from_peft(backbone("bert"), plain)


# ---- nothing is run, nothing is read from elsewhere


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_pickle_is_refused_and_never_run(name, plain, tmp_path):
    (plain / "adapter_model.safetensors").unlink()
    (plain / name).write_bytes(pickle.dumps(Bomb(str(tmp_path / "ran"))))
    with pytest.raises(InputError, match="is a pickle.*save_pretrained" if "bin" in name else "damaged or no safetensors"):
        from_peft(backbone("bert"), plain)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_link_to_outside_the_folder_is_refused(name, plain, tmp_path):
    (plain / name).rename(tmp_path / name)
    (plain / name).symlink_to(Path("..") / name)
    with pytest.raises(InputError, match="outside the folder; copy the file into it"):
        from_peft(backbone("bert"), plain)


def test_links_of_the_hub_cache_are_followed(plain, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for i, name in enumerate(("adapter_config.json", "adapter_model.safetensors")):
        (plain / name).rename(blobs / str(i))
        (snapshot / name).symlink_to(Path("../../blobs") / str(i))
    assert len(from_peft(backbone("bert"), snapshot)) == 1


@pytest.mark.parametrize("folder", ["nowhere", "a/adapter_config.json"])
def test_a_folder_that_is_none_is_named(folder, plain, tmp_path):
    with pytest.raises(InputError, match="expected a folder with adapter_config.json and adapter_model.safetensors, but"):
        from_peft(backbone("bert"), tmp_path / folder)


# ---- a plain Hugging Face checkpoint


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *map(str, range(2, 50))])}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def held(f: nn.Module, tokenizer: object, causal: bool = False) -> Backbone:
    return Backbone("tiny", f, tokenizer, "last" if causal else "mean", 16, causal)


@pytest.mark.parametrize("name", TEXT)
def test_a_folded_export_gives_the_features_of_the_deltas(name, tokenizer, tmp_path):
    f, inputs = backbone(name), batch(name)
    lora, dense = bank(f, "lora"), bank(f, "dense", at="mlp.out", spread=0.02)
    before = {n: t.clone() for n, t in f.state_dict().items()}, f.config.to_dict()
    folder = to_hf(replace(held(f, tokenizer), pool="cls"), [(lora, 2, 1.0), (dense, 1, 0.5)], tmp_path / "new" / "out")
    again = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        ids, half = Route.to([2] * 5), Route.to([1] * 5, torch.full((5, 1), 0.5))
        want = real(inputs, Adapted(f, [lora, dense])(inputs, [ids, half]).last_hidden_state)
    same(features(again, inputs), want, 1e-5)
    assert (features(again, inputs) - features(f, inputs)).abs().max() > 0.01
    assert all(torch.equal(t, before[0][n]) for n, t in f.state_dict().items()) and f.config.to_dict() == before[1]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]  # nothing half-made is left
    mine = load(str(folder))
    assert mine.pool == "cls" and mine.tokens(["7 8 9"]) == held(f, tokenizer).tokens(["7 8 9"])
    same(features(mine.f, inputs), want, 1e-5)


@pytest.mark.parametrize("pooler", [True, False])
def test_names_and_weights_are_those_of_a_plain_checkpoint(pooler, tokenizer, tmp_path):
    torch.manual_seed(0)
    f = BertModel(BertConfig(**SMALL), add_pooling_layer=pooler).eval()
    to_hf(held(f, tokenizer), [(bank(f, "lora"), 1, 1.0)], tmp_path / "out")
    f.save_pretrained(tmp_path / "plain")
    ours, plain = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "plain"))
    assert ours.keys() == plain.keys() and any("pooler" in n for n in ours) == pooler
    moved = {n for n in ours if not torch.equal(ours[n], plain[n])}
    assert moved == {f"encoder.layer.{i}.attention.self.{n}.weight" for i in range(2) for n in ("query", "value")}
    a, b = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("out", "plain"))
    assert a == b
    again, info = AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=pooler, output_loading_info=True)
    assert type(again) is BertModel and not info["missing_keys"] and not info["unexpected_keys"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_causal_export_gives_the_logits_too(name, tokenizer, tmp_path):
    f, inputs = causal(name).float(), batch(name)
    made = bank(f, "lora")
    folder = to_hf(held(f, tokenizer, True), [(made, 1, 1.0)], tmp_path / "out")
    want = Adapted(f, [made])(inputs | {"output_hidden_states": True}, Route.to([1] * 5))
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    same(real(inputs, again(**inputs).logits), real(inputs, want.logits), 2e-5)
    inner = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    assert name != "gpt2" or isinstance(inner, GPT2Model)
    same(features(inner, inputs), real(inputs, want.hidden_states[-1]), 1e-5)
    assert load(str(folder)).causal


@torch.no_grad()
def test_a_tied_weight_that_a_delta_would_part_is_refused(tokenizer, tmp_path):
    f = causal("gpt2").float()
    assert f.lm_head.weight is f.transformer.wte.weight
    with pytest.raises(InputError, match="one tensor in f"):
        to_hf(held(f, tokenizer, True), [(bank(f, "dense", at="embedding", spread=0.02), 1, 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_head_goes_beside_the_weights(tokenizer, tmp_path):
    f, head = backbone("bert"), {"W": torch.randn(3, D), "b": torch.randn(3)}
    facts = {"kind": "classify", "labels": ["no", "yes", "perhaps"], "two": False, "mean": [], "std": [], "max_length": None}
    record = facts | {"metric": "accuracy", "test": 0.5, "file": "c0ffee.safetensors"}
    folder = to_hf(held(f, tokenizer), [(bank(f, "lora"), 1, 1.0)], tmp_path / "out", head, record)
    assert json.loads((folder / "head.json").read_text()) == facts | {"pool": "mean", "unit": True}
    assert all(torch.equal(t, head[n]) for n, t in read_tensors(folder / "head.safetensors")[0].items())
    assert load_file(folder / "head.safetensors").keys() == head.keys()
    bare = to_hf(held(f, tokenizer), [], tmp_path / "bare", {}, record)
    assert not list(bare.glob("head.*")) and (bare / "tokenizer.json").is_file()


def test_an_export_that_fails_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    f = backbone("bert")
    with pytest.raises(InputError, match="Adapter changes activations, not weights"):
        to_hf(held(f, tokenizer), [(bank(f, "adapter"), 1, 1.0)], tmp_path / "out")
    monkeypatch.setattr(type(tokenizer), "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        to_hf(held(f, tokenizer), [(bank(f, "lora"), 1, 1.0)], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_overwrites_nothing_and_needs_a_model_of_transformers(tokenizer, tmp_path):
    f = backbone("bert")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    for place, words in (("out", "not empty; name a new folder"), ("out/notes", "a file; name a new folder")):
        with pytest.raises(InputError, match=words):
            to_hf(held(f, tokenizer), [(bank(f, "lora"), 1, 1.0)], tmp_path / place)
    assert (tmp_path / "out" / "notes").read_text() == "mine" and len(list((tmp_path / "out").iterdir())) == 1
    plain = Nested()
    with pytest.raises(InputError, match="needs a model of transformers, got Nested"):
        to_hf(held(plain, tokenizer), [(bank(plain, {"lora": {"rank": 2}}, at="fc"), 1, 1.0)], tmp_path / "new")
    (tmp_path / "empty").mkdir()
    to_hf(held(f, tokenizer), [(bank(f, "lora"), 1, 1.0)], tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()
