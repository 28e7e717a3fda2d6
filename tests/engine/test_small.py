"""The laboratory's small assets: what they are made of, that they are made once, whole, and with the same bits each time."""

import math
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from anabranch.core import site
from anabranch.engine import _context, _images, _lm, _loop, small
from anabranch.engine._context import KEYS, PLAIN, WORDS
from anabranch.engine.backbone import load
from anabranch.errors import InputError, WorkError

WHO, DO, WHAT = (
    ["the model", "a graph", "this array", "the frame"],
    ["sorts", "returns", "plots", "fits"],
    ["rows", "a tree", "all nodes"],
)
SENTENCES = [f"{a} {b} {c} number {n}." for n, (a, b, c) in enumerate((a, b, c) for a in WHO for b in DO for c in WHAT)]
CORPUS = {"train": SENTENCES[:40], "test": SENTENCES[40:]}
SIZE = {"steps": 3, "d": 16, "blocks": 2, "heads": 2}
LM = {**SIZE, "corpus": CORPUS, "vocab": 600}


def few(seed):
    return small.shapes(seed, rows=60)


MAKE = {
    "masked_lm": partial(small.masked_lm, **LM),
    "causal_lm": partial(small.causal_lm, **LM),
    "vit": partial(small.vit, images=few, **SIZE),
    "cnn": partial(small.cnn, images=few, steps=3, d=16),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    cache = tmp_path_factory.mktemp("small")
    return {name: make(cache) for name, make in MAKE.items()}


def bits(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "asset.json"}


# ---- kept


@pytest.mark.parametrize("name", MAKE)
def test_an_asset_is_made_once(name, made, monkeypatch):
    monkeypatch.setattr(_loop.torch, "set_num_threads", None)  # no training without it
    lines = []
    assert MAKE[name](made[name].parent, told=lines.append) == made[name] and not lines


@pytest.mark.parametrize("name", MAKE)
def test_the_same_recipe_gives_the_same_bits_whatever_the_caller_does(name, made, tmp_path):
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode():
        again = MAKE[name](tmp_path)
    assert again.name == made[name].name and bits(again) == bits(made[name])
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


@pytest.mark.parametrize("name", MAKE)
def test_another_seed_or_setting_is_another_asset(name, made, tmp_path):
    other, longer = MAKE[name](tmp_path, seed=1), MAKE[name](tmp_path, steps=4)
    assert len({made[name].name, other.name, longer.name}) == 3
    weights = [bits(folder)["model.safetensors"] for folder in (made[name], other, longer)]
    assert len(set(weights)) == 3


def spoil_weights(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def spoil_note(folder):
    file = folder / "asset.json"
    file.write_text(file.read_text().replace('"loss": ', '"loss": 1'))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_weights,
        spoil_note,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "asset.json").unlink(),
        lambda folder: (folder / "asset.json").write_text("[]"),
        lambda folder: (folder / "asset.json").write_bytes(b"\xff{"),
        lambda folder: (folder / "more").mkdir(),
    ],
    ids=["weights", "note", "no weights", "no note", "list", "bytes", "folder"],
)
def test_a_damaged_asset_is_made_again_with_one_line(spoil, made, tmp_path):
    folder, lines = tmp_path / made["cnn"].name, []
    shutil.copytree(made["cnn"], folder)
    spoil(folder)
    assert MAKE["cnn"](tmp_path, told=lines.append) == folder
    assert lines == [f"{folder} is damaged and is made again"] and bits(folder) == bits(made["cnn"])
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    MAKE["cnn"](tmp_path, told=lines.append)
    assert len(lines) == 1


def test_a_break_half_way_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(_images, "train", stop)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        MAKE["cnn"](tmp_path)
    assert not list(tmp_path.iterdir()) and torch.get_num_threads() == threads


def test_who_comes_second_takes_what_the_first_has_left(made, tmp_path, monkeypatch):
    real = _images.fit

    def slow(*args):
        shutil.copytree(made["cnn"], tmp_path / made["cnn"].name)  # another process, meanwhile
        return real(*args)

    monkeypatch.setattr(_images, "fit", slow)
    lines = []
    assert bits(MAKE["cnn"](tmp_path, told=lines.append)) == bits(made["cnn"]) and not lines


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="cannot be written"):
        MAKE["cnn"](tmp_path / "file")


def test_the_docstring_suite_is_the_default_corpus_and_is_made_again_when_damaged(tmp_path, monkeypatch):
    def suite(folder):
        if folder.exists() and not (folder / "manifest.json").exists():
            raise InputError("neither")
        for split, texts in CORPUS.items():
            (folder / "library").mkdir(parents=True, exist_ok=True)
            (folder / "library" / f"{split}.jsonl").write_text("".join(f'{{"text": "{t}", "label": 0}}\n' for t in texts * 2))
        (folder / "manifest.json").write_text("{}")

    monkeypatch.setattr(small, "docstrings", suite)
    lines, settings = [], {k: v for k, v in LM.items() if k != "corpus"}
    folder = small.masked_lm(tmp_path, **settings, told=lines.append)
    assert not lines and small.texts(tmp_path / "docstrings") == CORPUS
    assert folder.name == MAKE["masked_lm"](tmp_path).name
    (tmp_path / "docstrings" / "manifest.json").unlink()
    assert small.masked_lm(tmp_path, **settings, told=lines.append) == folder
    assert lines == [f"{tmp_path / 'docstrings'} is damaged and is made again"]


@pytest.mark.parametrize("name", MAKE)
def test_what_an_asset_reports(name, made):
    found = small.report(made[name])
    assert all(isinstance(v, float) and math.isfinite(v) and v >= 0 for v in found.values())
    right = [v for k, v in found.items() if k.startswith(("right", "test", "masked", "unigram acc", "commonest"))]
    assert right and max(right) <= 1 and found["seconds"] > 0 and found["loss"] > 0


@pytest.mark.parametrize(
    "call, words",
    [
        (partial(small.masked_lm, heads=3, d=16, corpus=CORPUS), "d is a multiple of 3 here, got 16; for example 15"),
        (partial(small.masked_lm, steps=0, corpus=CORPUS), "masked_lm: steps"),
        (partial(small.causal_lm, share=70, corpus=CORPUS), "for 70 per cent pass 0.7"),
        (
            partial(small.causal_lm, tasks=[partial(_context.copied, length=3)], corpus=CORPUS),
            "a function that is written in a file",
        ),
        (partial(small.cnn, d=20), "multiple of 16"),
        (partial(small.vit, blocks=0), "vit: blocks"),
    ],
)
def test_bad_settings(call, words, tmp_path):
    with pytest.raises(InputError, match=words):
        call(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- language models


@pytest.mark.parametrize("name, causal, pool", [("masked_lm", False, "mean"), ("causal_lm", True, "last")])
def test_a_language_model_is_a_backbone(name, causal, pool, made):
    b = load(str(made[name]))
    assert (b.d, b.blocks, b.causal, b.pool, b.longest, b.pad) == (16, 2, causal, pool, 128, 0)
    rows = b.tokens(["the model sorts rows", ""])
    assert b.tokenizer.decode(rows[0].ids, skip_special_tokens=True).strip() == "the model sorts rows"
    assert (rows[0].ids[0] == 2 and rows[0].ids[-1] == 3) is not causal
    out = b.f(**b.inputs([rows[0].ids]))
    assert out[0].isfinite().all() and out[0].shape[-1] == (len(b.tokenizer) if causal else 16)
    words = b.tokens([["zebra", "sorts", "rows"]])[0]
    assert len(words.starts) == 3 and not words.cut
    assert len(site.find(b.f, "attention.query")) == 2


def test_the_masked_model_keeps_its_head(made):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    f, words = AutoModelForMaskedLM.from_pretrained(made["masked_lm"]), AutoTokenizer.from_pretrained(made["masked_lm"])
    ids = words("the model [MASK] rows", return_tensors="pt")
    assert words.mask_token_id in ids["input_ids"][0] and f(**ids).logits.shape[-1] == len(words)


def test_every_word_of_the_tasks_is_one_token(made):
    words = load(str(made["causal_lm"])).tokenizer
    assert all(len(words(w)["input_ids"]) == 1 for w in (*WORDS, *PLAIN, "->", ";", ":", "copy", "turn"))
    front, whole = words("baf -> bok ; bev ->")["input_ids"], words("baf -> bok ; bev -> biz")["input_ids"]
    assert whole[:-1] == front and whole[-1:] == words("biz")["input_ids"]


def test_a_model_without_tasks(tmp_path):
    found = small.report(small.causal_lm(tmp_path, **LM, tasks=()))
    assert not [name for name in found if name.startswith("right")]


def test_rows_hold_whole_texts():
    rows = _lm.packed([[5, 6], [7, 8, 9], [6], [5] * 9], 4, 0)
    assert rows.tolist() == [[5, 6, 0, 0], [7, 8, 9, 6], [5, 5, 5, 5]]


def test_masks():
    rows = torch.full((200, 100), 50)
    rows[:, 90:] = 0
    ids, labels = _lm.masked(rows, 1000, torch.Generator().manual_seed(0))
    chosen = labels != _lm.UNREAD
    assert not chosen[:, 90:].any() and (labels[chosen] == 50).all() and (ids[~chosen] == rows[~chosen]).all()
    assert abs(chosen[:, :90].float().mean() - 0.2) < 0.01
    assert abs((ids[chosen] == 4).float().mean() - 0.8) < 0.02 and abs((ids[chosen] == 50).float().mean() - 0.1) < 0.02


def test_the_schedule_and_the_last_losses():
    w, rates = torch.nn.Linear(1, 1, bias=False), []
    torch.nn.init.constant_(w.weight, 1.0)

    def loss(x):
        rates.append(w.weight.item())
        return w(x).sum()

    final = _loop.train(w, ((torch.ones(1, 1),) for _ in range(99)), loss, 40, 0.1)
    steps = -np.diff(rates)  # Adam under a constant gradient moves by the rate
    assert len(rates) == 40 and steps[0] == pytest.approx(0.05, rel=0.02) and steps.argmax() == 1 and steps[-1] < 0.001
    assert final == pytest.approx(sum(rates[-2:]) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_tasks_and_their_answers(seed):
    rng = random.Random(seed)
    prompt, answer = _context.mapped(rng, k=3, shots=4)
    *shown, asked = [part.split(" -> ") for part in prompt.removesuffix(" ->").split(" ; ")]
    pairs = _context.rule(3)
    assert len(shown) == 4 and all(pairs[a] == x for a, x in shown) and pairs[asked[0]] == answer
    assert asked[0] not in dict(shown) and sorted(pairs.values()) == sorted(KEYS)
    prompt, answer = _context.recalled(rng)
    *shown, asked = [part.split(" -> ") for part in prompt.removesuffix(" ->").split(" ; ")]
    assert dict(shown)[asked[0]] == answer
    prompt, answer = _context.copied(rng, 5)
    assert prompt == f"copy {answer} :" and len(answer.split()) == 5
    prompt, answer = _context.turned(rng, 5)
    assert prompt.split()[1:-1] == answer.split()[::-1]
    for _ in range(50):
        prompt, answer = _context.added(rng)
        assert eval(prompt.removesuffix("=")) == int(answer) and 0 <= int(answer) <= 9


def test_two_languages_are_one_vocabulary_permuted():
    assert len(set(WORDS)) == 64 and _context.language(0)["baf"] == "baf"
    assert sorted(_context.language(1)) == sorted(_context.language(1).values()) == sorted(WORDS)
    back = {b: a for a, b in _context.language(1).items()}
    sentence = " ".join(_context.spoken(random.Random(3), 0))
    other = " ".join(_context.spoken(random.Random(3), 1))
    assert other == _context.said(sentence, 1) != sentence and " ".join(back[w] for w in other.split()) == sentence
    assert _context.said("3 + baf", 1) == f"3 + {_context.language(1)['baf']}"
    told = _context.added(random.Random(0), WORDS[:13])
    assert {*" ".join(told).split()} <= set(WORDS)


# ---- pictures


@pytest.mark.parametrize("images, classes, rows", [(small.digits, 10, 1797), (small.shapes, 6, 3000)])
def test_pictures(images, classes, rows):
    found, same, other = images(0), images(0), images(1)
    assert found.x_train.shape == (len(found.y_train), 1, 16, 16) and len(found.y_train) + len(found.y_test) == rows
    assert set(found.y_train.tolist()) == set(found.y_test.tolist()) == set(range(classes))
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True)) and not torch.equal(found.x_test, other.x_test)
    assert found.x_train.dtype is torch.float32 and found.y_train.dtype is torch.long


@pytest.mark.parametrize(
    "kind, area",
    [
        ("circle", math.pi),
        ("square", 2.0),
        ("triangle", 3 * math.sqrt(3) / 4),
        ("ring", math.pi * (1 - 0.36)),
        ("star", 5 * 0.4 * math.sin(math.pi / 5)),
        ("cross", 4 * 0.3 * math.sin(math.pi / 4)),
    ],
)
def test_a_drawn_shape_has_its_area(kind, area):
    x = _images.draw([kind] * 3, np.full((3, 2), 50.0), np.full(3, 40.0), np.array([0.0, 0.4, 2.0]), side=100)
    assert x.min() == 0 and x.max() == 1
    assert x.sum((1, 2)) == pytest.approx(area * 1600, rel=0.02)


def test_a_square_stands_where_it_is_put():
    x = _images.draw(["square"], np.array([[4.0, 10.0]]), np.array([2 * math.sqrt(2)]), np.array([math.pi / 4]))[0]
    assert (x > 0.5).nonzero()[0].tolist() == [r for r in range(8, 12) for _ in range(4)]  # rows: y
    assert sorted({*(x > 0.5).nonzero()[1].tolist()}) == [2, 3, 4, 5]  # columns: x


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_a_network_for_pictures(name, made):
    net, x = small.network(made[name]), few(0).x_test
    out = net(pixel_values=x).logits
    assert out.shape == (12, 6) and not net.training
    assert torch.allclose(net(pixel_values=x[:1]).logits, out[:1], atol=1e-6)
    assert {p.device.type for p in net.parameters()} == {"cpu"}


def test_deltas_find_their_places_in_the_vit(made):
    net = small.network(made["vit"])
    assert [s.depth for s in site.find(net, "attention.query")] == [0, 1] and len(site.find(net, "mlp.in")) == 2
    assert (site.width(net), len(site.blocks(net)[1])) == (16, 2)


# ---- tables


@pytest.mark.parametrize(
    "name, rows, width",
    [("breast_cancer", 569, 30), ("diabetes", 442, 10), ("digits", 1797, 64), ("iris", 150, 4), ("wine", 178, 13)],
)
def test_tables(name, rows, width):
    found = small.tabular(name)
    assert found.x_train.shape[1] == width and len(found.x_train) + len(found.x_test) == rows
    assert len(found.x_test) == math.ceil(rows / 5) == len(found.y_test)
    assert found.x_train.mean(0).abs().max() < 1e-5 and found.x_train.isfinite().all()
    assert found.y_train.dtype is (torch.float32 if name == "diabetes" else torch.long)
    assert all(torch.equal(a, b) for a, b in zip(found, small.tabular(name), strict=True))
    assert not torch.equal(found.y_test, small.tabular(name, seed=1).y_test)


def test_an_unknown_table():
    with pytest.raises(InputError, match="no tabular set 'wines'; did you mean wine?"):
        small.tabular("wines")
