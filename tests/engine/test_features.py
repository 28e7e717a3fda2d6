"""The frozen features: what f says, whatever the chunk, the disk, or who asks; kept on disk and read from there."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import _tiny as tiny

from anabranch.core.adapt import Adapted
from anabranch.core.route import Route
from anabranch.engine import features as module
from anabranch.engine.backbone import Backbone, backbone_of
from anabranch.engine.features import Features


@pytest.fixture(autouse=True)
def _sixteens(monkeypatch):
    """Rows here are padded to multiples of 16, so that a bucket holds several of these texts."""
    monkeypatch.setattr("anabranch.engine.backbone.STEP", 16)


TEXTS = [r["text"] for r in tiny.rows("classify", 30)] + ["", "the " * 60, "w3"]


def backbone(name: str = "bert", dtype: str = "float32") -> Backbone:
    return backbone_of(str(tiny.home() / name), dtype)


def features(folder: Path | None, name: str = "bert", tail: int = 1, dtype: str = "float32", **more: Any) -> Features:
    made = Features(backbone(name, dtype), folder, tail, **more)
    made.add(made.backbone.tokens(TEXTS))
    if folder:
        made.run()
    return made


def hidden_states(f: Backbone, made: Features, unit: int) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return f.f(**f.inputs([made.tokens[unit].ids]), output_hidden_states=True).hidden_states


def same(a: Features, b: Features) -> bool:
    return torch.equal(a.vectors, b.vectors) and all(torch.equal(x, y) for x, y in zip(a.words, b.words, strict=True))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("tail", [0, 1])
def test_vectors_are_those_of_f(tmp_path, name, tail):
    made = features(tmp_path, name, tail)
    assert len(made.tokens) == len(set(made.backbone.tokens(TEXTS))) and made.vectors.shape == (len(made.tokens), 32 * (1 + tail))
    for unit in range(len(made.tokens)):
        states, mask = hidden_states(made.backbone, made, unit), torch.ones(1, len(made.tokens[unit].ids), dtype=torch.long)
        pad = states[-1].shape[1] - mask.shape[1]
        mask = torch.nn.functional.pad(mask, (0, pad))
        want = [made.backbone.pooled(states[k], mask) for k in ((-1, tail) if tail else (-1,))]
        torch.testing.assert_close(made.vectors[unit : unit + 1], torch.cat(want, 1), rtol=1e-5, atol=1e-5)


def test_words_are_read_at_their_first_token(tmp_path):
    made = Features(backbone(), tmp_path, 1)
    rows = [tuple(r["tokens"]) for r in tiny.rows("tag", 12)] + [(), ("the",) * 20]
    units = made.add(made.backbone.tokens(rows))
    made.run()
    for row, unit in zip(rows, units, strict=True):
        states = hidden_states(made.backbone, made, unit)
        want = torch.cat([states[-1][0], states[1][0]], 1)[1 : len(row) + 1]
        torch.testing.assert_close(made.words[unit].float(), want, rtol=1e-5, atol=1e-5)
        assert made.words[unit].shape == (len(row), 64)


def test_equal_texts_are_one_unit():
    made = Features(backbone(), None, 1)
    first = made.add(made.backbone.tokens(["red", "the red", "red", ""]))
    assert first == [0, 1, 0, 2] and made.add(made.backbone.tokens(["the red"])) == [1]
    assert made.add(made.backbone.tokens([("red",)])) == [3]  # words are asked for other things


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_batches_and_disk_change_no_bit(tmp_path, monkeypatch, dtype):
    whole = features(tmp_path / "a", dtype=dtype)
    monkeypatch.setattr(module, "CHUNK", 5)
    monkeypatch.setattr(module, "TOKENS", 48)
    parts = features(tmp_path / "b", dtype=dtype)
    none = features(tmp_path / "c", dtype=dtype, disk=0)
    assert same(whole, parts) and same(whole, none) and len(parts.chunks) > len(whole.chunks)
    assert not list((tmp_path / "c").glob("*.npy")) and list((tmp_path / "a").glob("*.npy"))
    units = [u for u in range(len(whole.tokens)) if whole.length(u) == 16]
    entries = [f.entry(units)[1] for f in (whole, parts, none)]
    assert all(e is not None and torch.equal(e, entries[0]) for e in entries) and entries[0].dtype is whole.backbone.dtype


def test_the_same_when_f_has_seen_other_texts_before(tmp_path):
    made = Features(backbone(), tmp_path, 1)
    made.add(made.backbone.tokens(["owl the", "dog"]))
    made.run()
    units = made.add(made.backbone.tokens(TEXTS))
    made.run()
    made.run()
    assert torch.equal(made.vectors[units], features(tmp_path / "new").vectors[features(None).add(backbone().tokens(TEXTS))])


def test_what_is_on_disk_is_not_made_again(tmp_path, monkeypatch):
    first = features(tmp_path)
    before = tiny.files(tmp_path)
    monkeypatch.setattr(Features, "_compute", lambda *_: pytest.fail("f ran"))
    assert same(first, features(tmp_path)) and tiny.files(tmp_path) == before


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1]), lambda p: flip(p, -1), lambda p: flip(p, 9)]
)
def test_a_damaged_chunk_is_made_again(tmp_path, monkeypatch, suffix, damage):
    monkeypatch.setattr(module, "CHUNK", 8)
    first = features(tmp_path)
    before = tiny.files(tmp_path)
    damage(sorted(tmp_path.glob(f"*.{suffix}"))[1])
    ran, compute = [], Features._compute
    monkeypatch.setattr(Features, "_compute", lambda self, units, hidden: ran.append(units) or compute(self, units, hidden))
    again = features(tmp_path)
    assert same(first, again) and len(ran) == 1 and tiny.files(tmp_path) == before


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_other_weights_types_and_tails_have_other_files(tmp_path):
    features(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    for more in ({"dtype": "bfloat16"}, {"tail": 0}, {"name": "gpt2"}):
        features(tmp_path, **more)
        assert len({p.name for p in tmp_path.iterdir()} - names) > 0
        names = {p.name for p in tmp_path.iterdir()}
    assert torch.equal(features(tmp_path).vectors, features(None or tmp_path / "x").vectors)


def tensors() -> list[torch.Tensor]:
    return [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]


def test_the_middle_is_read_from_disk_and_not_kept(tmp_path):
    made = Features(backbone(), tmp_path, 1)
    made.add(made.backbone.tokens([f"w{i % 30} w{i // 30} " + "the " * 100 for i in range(600)]))
    gc.collect()
    held = {id(t) for t in tensors()}
    made.run()
    gc.collect()
    grown = sum(t.untyped_storage().nbytes() for t in tensors() if id(t) not in held)
    maps = list(made._hidden.values())
    kept = sum(m.nbytes for m in maps)
    assert maps and all(isinstance(m, np.memmap) and m.mode == "r" for m in maps) and kept == 600 * 112 * 32 * 4
    assert grown < kept / 20
    made.entry([3, 4])
    assert all(isinstance(m, np.memmap) for m in made._hidden.values())


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_tail_without_a_delta_says_what_f_says(tmp_path, name):
    made = features(tmp_path, name)
    adapted = Adapted(made.backbone.f, [], 1)
    units = [u for u in range(len(made.tokens)) if made.length(u) == 16]
    with torch.no_grad():
        found = torch.cat(made.forward(adapted, units, [], False))
    assert torch.equal(found, made.vectors[units])


def test_texts_that_were_not_kept_run_below_the_tail_once(tmp_path, monkeypatch):
    """A text that several tasks ask about, in one batch: it is run once, and each row gets it."""
    live, kept = Features(backbone(), None, 1), features(tmp_path)
    ids = live.add(live.backbone.tokens(TEXTS))
    counted, below = [], module.below_of(live.backbone, 1)
    monkeypatch.setitem(live.backbone.lower, 1, lambda inputs: counted.append(len(inputs["input_ids"])) or below(inputs))
    asked = [ids[i] for i in (2, 0, 2, 2, 1, 0)]
    rows = live.entry(asked)[1]
    assert counted == [3] and torch.equal(rows, kept.entry(asked)[1])


def test_a_mixed_batch_is_each_row_alone(tmp_path):
    """Slots of several tasks and none, rows known and new, bit for bit."""
    made = features(tmp_path)
    bank = tiny.bank(made.backbone.f, slots=3)
    adapted = Adapted(made.backbone.f, [bank], 1)
    units = [u for u in range(len(made.tokens)) if made.length(u) == 16][:9]
    units += made.add(made.backbone.tokens(["a new text", "w7 w8"]))
    slots = [0, 1, 2, 3, 1, 1, 1, 1, 2, 3, 0]
    with torch.no_grad():
        together = made.forward(adapted, units, [Route.to(slots)], False)
        alone = [made.forward(adapted, [u], [Route.to([s])], False)[0] for u, s in zip(units, slots, strict=True)]
    torch.testing.assert_close(torch.cat(together), torch.cat(alone), rtol=0, atol=1e-6)
