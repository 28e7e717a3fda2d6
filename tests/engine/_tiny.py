"""Tiny random backbones with a word tokenizer, tasks of all eight kinds that they learn in a second, and ways to compare runs."""

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging

import anabranch.engine.fit as fitting
import anabranch.engine.run as planning
from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.core.site import find

ROLES = [
    "attention.query[-1:]",
    "attention.key[-1:]",
    "attention.value[-1:]",
    "attention.out[-1:]",
    "mlp.in[-1:]",
    "mlp.out[-1:]",
]
COLOURS, ANIMALS, NAMES = ["red", "green", "blue"], ["cat", "dog", "owl"], ["ann", "bob", "lee"]
FILLERS = [
    "the",
    "a",
    "is",
    "of",
    "in",
    "on",
    "it",
    "was",
    "near",
    "far",
    "big",
    "old",
    "new",
    "very",
    "also",
    "with",
    "walks",
    "sits",
    "sees",
    "finds",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *COLOURS, *ANIMALS, *NAMES, *FILLERS, *(f"w{i}" for i in range(30)), "say", ":"]
DOCUMENTS = {f"d{i}": f"w{i} w{(i + 7) % 30} the" for i in range(20)}

Row = dict[str, Any]
MACHINE = {"dtype": "float32", "gigaflops": 50.0, "threads": 1}  # instead of a measurement
_home = tempfile.TemporaryDirectory(prefix="anabranch-")
logging.disable_progress_bar()
torch.set_num_threads(1)


# ---- backbones


def bert(folder: Path, seed: int = 0, **more: Any) -> Path:
    """d = 32, two blocks, 128 positions."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(**size, vocab_size=len(WORDS), max_position_embeddings=128, pad_token_id=0, **more)
    f = BertModel(config, add_pooling_layer=False)
    for p in f.parameters():  # weights that tell words apart
        p.data += 0.15 * torch.randn_like(p)
    frame = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return saved(folder, f, frame)


def gpt2(folder: Path, seed: int = 0, **more: Any) -> Path:
    """d = 32, two blocks, 128 positions; the end token is [SEP]."""
    torch.manual_seed(seed)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "bos_token_id": 3, "eos_token_id": 3}
    return saved(folder, GPT2LMHeadModel(GPT2Config(**size | more, vocab_size=len(WORDS))), None)


def saved(folder: Path, f: Any, frame: Any) -> Path:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if frame:
        tokenizer.post_processor = frame
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    f.save_pretrained(folder)
    return folder


def bank(f: Any, delta: Any = "lora", slots: int = 2, spread: float = 0.3) -> Bank:
    """Random slots at the upper block of f, moved away from their start."""
    rng = torch.Generator().manual_seed(2)
    made = Bank.make(
        make("delta", delta), make("gate", "by_task"), find(f, ["attention.query[-1:]", "attention.value[-1:]"]), rng
    )
    made.add([made.fresh(rng) for _ in range(slots)])
    own = made.tables["own"].data
    own[1:] += spread * torch.randn(own[1:].shape, generator=rng)
    return made


# ---- tasks


def words(rng: random.Random, *more: str, most: int = 6) -> str:
    said = [*more, *rng.choices(FILLERS, k=rng.randint(1, most))]
    rng.shuffle(said)
    return " ".join(said)


def classify(rng: random.Random) -> Row:
    colour = rng.choice(COLOURS)
    return {"text": words(rng, colour), "label": colour}


def multilabel(rng: random.Random) -> Row:
    there = [a for a in ANIMALS if rng.random() < 0.4]
    return {"text": words(rng, *there), "label": there}


def regress(rng: random.Random) -> Row:
    n = rng.randint(0, 4)
    return {"text": words(rng, *["big"] * n, most=3), "label": 100 + 10.0 * n}


def tag(rng: random.Random) -> Row:
    said = words(rng, rng.choice(NAMES[:2]), rng.choice(ANIMALS)).split()
    at = next(i for i, w in enumerate(said) if w in NAMES) + 1
    said[at:at] = ["lee"] * rng.randint(0, 1)
    kinds = {"ann": "B-PER", "bob": "B-PER", "lee": "I-PER"} | dict.fromkeys(ANIMALS, "B-BEAST")
    return {"tokens": said, "label": [kinds.get(w, "O") for w in said]}


def pair(rng: random.Random) -> Row:
    a, b = rng.choice(COLOURS), rng.choice(COLOURS)
    b = a if rng.random() < 0.3 else b
    return {"text": words(rng, a, most=2), "text_b": words(rng, b, most=2), "label": "same" if a == b else "other"}


def choice(rng: random.Random) -> Row:
    n = rng.randint(2, 3)
    found = rng.sample(COLOURS, n)
    right = rng.randrange(n)
    return {"text": words(rng, found[right], most=2), "choices": [words(rng, c, most=1) for c in found], "label": right}


def retrieve(rng: random.Random) -> Row:
    i = rng.randrange(20)
    return {"text": words(rng, f"w{i}", most=2), "label": [f"d{i}"]}


def generate(rng: random.Random) -> Row:
    a, b = rng.choice(COLOURS), rng.choice(ANIMALS)
    return {"text": f"say {a} {b} :", "label": a}


KINDS: dict[str, Callable[[random.Random], Row]] = {
    f.__name__: f for f in (classify, multilabel, regress, tag, pair, choice, retrieve, generate)
}
HEADED = [k for k in KINDS if k != "generate"]


def rows(kind: str, n: int, seed: int = 0) -> list[Row]:
    rng = random.Random(f"{kind}/{seed}")
    return [KINDS[kind](rng) for _ in range(n)]


def folder(place: Path, kind: str, sizes: Mapping[str, int] | None = None, seed: int = 0, **meta: Any) -> Path:
    """A task folder of ``kind`` with train, valid and test of these sizes; ``meta`` goes into task.json."""
    sizes = sizes or {"train": 64, "valid": 24, "test": 24}
    made, at = rows(kind, sum(sizes.values()), seed), 0
    for split, n in sizes.items():
        lines(place / f"{split}.jsonl", made[at : at + n])
        at += n
    if kind == "retrieve":
        lines(place / "corpus.jsonl", [{"id": i, "text": t} for i, t in DOCUMENTS.items()])
    (place / "task.json").write_text(json.dumps({"kind": kind} | meta))
    return place


def lines(path: Path, made: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def plan(backbone: Path, data: Path, names: Iterable[str] = HEADED, **more: Any) -> dict[str, Any]:
    """A plan whose tasks are the folders ``data/<name>``."""
    return {
        "backbone": str(backbone),
        "tasks": {n: {"data": str(data / n)} for n in names},
        "delta": {"lora": {"rank": 2}, "at": ROLES, "lr": 3e-3},
    } | more


@contextmanager
def quick(steps: int = 12, dtype: str = "float32") -> Iterator[None]:
    """Inside, fits take few steps and compute in ``dtype``, whatever the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "STEPS", steps)
        patch.setattr(fitting, "profile", lambda: MACHINE | {"dtype": dtype})
        yield


def fit(made: Any, out: Path, steps: int = 12, dtype: str = "float32", **more: Any) -> dict[str, Any]:
    with quick(steps, dtype):
        return fitting.fit(made, out, **more)


# ---- what many tests look at; made once, never changed


@cache
def home() -> Path:
    """A folder with the backbones ``bert`` and ``gpt2`` and a task folder of every kind under ``data``."""
    place = Path(_home.name)
    bert(place / "bert")
    gpt2(place / "gpt2")
    for kind in KINDS:
        folder(place / "data" / kind, kind)
    return place


@cache
def fitted(backbone: str = "bert") -> tuple[Path, dict[str, Any]]:
    """The run of all kinds that ``backbone`` can do (bert: all but generate), and its results."""
    place, names = home(), HEADED if backbone == "bert" else KINDS
    delta = {"lora": {"rank": 4}, "at": ["attention.query", "attention.value", "mlp.in"], "lr": 0.02}
    more = {} if backbone == "bert" else {"delta": delta}
    return place / f"run-{backbone}", fit(plan(place / backbone, place / "data", names, **more), place / f"run-{backbone}")


def copied(folder: Path, backbone: str = "bert") -> Path:
    """The run of :func:`fitted`, to be changed."""
    return Path(shutil.copytree(fitted(backbone)[0], folder))


# ---- comparing


def timeless(results: Any) -> Any:
    """Results without what a clock measured."""
    if isinstance(results, dict):
        return {k: timeless(v) for k, v in results.items() if k not in ("seconds", "stages", "sum")}
    return [timeless(v) for v in results] if isinstance(results, list) else results


def files(folder: Path) -> dict[str, bytes]:
    """All bytes under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
