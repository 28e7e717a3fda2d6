"""The laboratory's small assets: two language models, two networks for pictures, tabular sets. Nothing is downloaded.

Each model is trained once, on one core in under two minutes, and kept in a folder of ``cache`` named by a hash of all that
makes it: settings, seed, data, versions, the code of its recipe. The folder holds ``asset.json`` beside the weights: what
training took and what came out (:func:`report`). A damaged folder is made again; ``told`` gets one line about it.
"""

import inspect
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from anabranch.engine import _context, _images, _lm, _loop
from anabranch.engine._context import TASKS, Task
from anabranch.engine._images import Split, digits, divided, shapes
from anabranch.engine._lm import Texts, texts
from anabranch.engine.cache import checksum, digest, read_json, read_tensors, write_json, write_tensors
from anabranch.errors import InputError, WorkError, nearest
from anabranch.settings import check
from anabranch.types import Count, Share
from anabranch.world.docstrings import docstrings

__all__ = ["Split", "causal_lm", "cnn", "digits", "masked_lm", "network", "report", "shapes", "tabular", "texts", "vit"]

TABULAR = ("breast_cancer", "diabetes", "digits", "iris", "wine")
Told = Callable[[str], Any]


def silent(line: str) -> None:
    """Nobody is told."""


def masked_lm(
    cache: Path, *, corpus: Texts | None = None, seed: int = 0, steps: Count = 1500, d: Count = 128, blocks: Count = 4,
    heads: Count = 4, vocab: Count = 4096, told: Told = silent,
) -> Path:  # fmt: skip
    """The folder of a BERT trained to fill masks in docstrings, as :func:`anabranch.engine.backbone.load` opens it.

    ``corpus``: :func:`texts` of a suite, by default that of the docstring suite, which is then kept in ``cache`` too.
    The model has its masked LM head: ``AutoModelForMaskedLM`` opens the same folder.
    """
    settings = check(masked_lm, {"steps": steps, "d": d, "blocks": blocks, "heads": heads, "vocab": vocab}, "masked_lm")
    _divides(heads, d)
    read = corpus or _corpus(cache, told)
    make = partial(_lm.bert, corpus=read, seed=seed, **settings)
    made = {**settings, "seed": seed, "corpus": digest(dict(read))}
    return _kept(cache, "masked-lm", made, (_lm, _loop), make, told)


def causal_lm(
    cache: Path, *, tasks: Sequence[Task] = TASKS, share: Share = 0.7, corpus: Texts | None = None, seed: int = 0,
    steps: Count = 1400, d: Count = 128, blocks: Count = 4, heads: Count = 4, vocab: Count = 4096, told: Told = silent,
) -> Path:  # fmt: skip
    """The folder of a GPT-2 trained on docstrings and, for ``share`` of the rows, on synthetic ``tasks`` told in context.

    A task is a function of a ``random.Random`` that returns (prompt, answer); see ``engine/_context.py`` for those that
    are here and for the two languages. None of them: docstrings only.
    """
    settings: dict[str, Any] = {"share": share, "steps": steps, "d": d, "blocks": blocks, "heads": heads, "vocab": vocab}
    settings = check(causal_lm, settings, "causal_lm")
    _divides(heads, d)
    read = corpus or _corpus(cache, told)
    make = partial(_lm.gpt2, corpus=read, tasks=tasks, seed=seed, **settings)
    made = {**settings, "seed": seed, "corpus": digest(dict(read)), "tasks": [_named(task) for task in tasks]}
    return _kept(cache, "causal-lm", made, (_lm, _loop, _context), make, told)


def vit(
    cache: Path, *, images: Callable[[int], Split] = digits, seed: int = 0, steps: Count = 1500, d: Count = 64,
    blocks: Count = 4, heads: Count = 4, told: Told = silent,
) -> Path:  # fmt: skip
    """The folder of a ViT that tells the classes of ``images(seed)``; :func:`network` opens it."""
    settings = check(vit, {"steps": steps, "d": d, "blocks": blocks, "heads": heads}, "vit")
    _divides(heads, d)
    return _seen(cache, "vit", partial(_images.vit, d=d, blocks=blocks, heads=heads), images(seed), seed, settings, told)


def cnn(
    cache: Path, *, images: Callable[[int], Split] = digits, seed: int = 0, steps: Count = 1500, d: Count = 64,
    told: Told = silent,
) -> Path:  # fmt: skip
    """The folder of a small CNN that tells the classes of ``images(seed)``; :func:`network` opens it."""
    settings = check(cnn, {"steps": steps, "d": d}, "cnn")
    _divides(16, d)
    return _seen(cache, "cnn", partial(_images.Cnn, d=d), images(seed), seed, settings, told)


def network(folder: Path) -> nn.Module:
    """The network that :func:`vit` or :func:`cnn` left: ``net(pixel_values=x [n, 1, 16, 16]).logits`` [n, classes]."""
    from transformers import AutoModelForImageClassification
    from transformers.utils import logging

    if (folder / "config.json").is_file():
        logging.disable_progress_bar()
        found: nn.Module = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True)
        return found.eval()
    tensors, note = read_tensors(folder / "model.safetensors")
    net = _images.Cnn(**note)
    net.load_state_dict(tensors)
    return net.eval()


def report(folder: Path) -> dict[str, float]:
    """What an asset took (``seconds``, ``cpu_seconds``) and what came out: last loss, and its score beside a baseline's."""
    return dict(read_json(folder / "asset.json")["report"])


def tabular(name: str, seed: int = 0) -> Split:
    """One of scikit-learn's bundled sets: x [n, features] scaled by the training rows, y classes, or diabetes' numbers."""
    from sklearn import datasets
    from sklearn.preprocessing import StandardScaler

    if name not in TABULAR:
        raise InputError(f"no tabular set {name!r}{nearest(name, TABULAR)}")
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    found = divided(x, y, seed)
    scale = StandardScaler().fit(found.x_train.double())
    x_train, x_test = (torch.tensor(scale.transform(a.double()), dtype=torch.float32) for a in (found.x_train, found.x_test))
    return found._replace(x_train=x_train, x_test=x_test)


def _seen(
    cache: Path, name: str, build: Callable[..., nn.Module], data: Split, seed: int, settings: dict[str, Any], told: Told
) -> Path:
    def make(folder: Path) -> dict[str, float]:
        net = build(int(data.y_train.max()) + 1)
        found = _images.fit(net, data, seed, settings["steps"])
        if isinstance(net, _images.Cnn):
            write_tensors(folder / "model.safetensors", net.state_dict(), net.shape)
        else:
            net.save_pretrained(folder)  # type: ignore[operator]
        return found

    made = {**settings, "seed": seed, "data": checksum(data._asdict())}
    return _kept(cache, name, made, (_images, _loop), make, told)


def _corpus(cache: Path, told: Told) -> dict[str, list[str]]:
    suite = cache / "docstrings"
    try:
        docstrings(suite)
    except InputError:  # it is ours, so what is neither a suite nor empty is a damaged suite
        told(f"{suite} is damaged and is made again")
        shutil.rmtree(suite)
        docstrings(suite)
    return texts(suite)


def _kept(
    cache: Path, name: str, made: dict[str, Any], code: Sequence[ModuleType], make: Callable[[Path], dict[str, float]],
    told: Told,
) -> Path:  # fmt: skip
    """The folder of this recipe, made now if it is not there whole; it appears by one rename, so never half."""
    made = made | {package: version(package) for package in ("torch", "transformers", "tokenizers", "scikit-learn")}
    folder = cache / f"{name}-{digest(made, *map(inspect.getsource, code))}"
    if _whole(folder):
        return folder
    if folder.exists():
        told(f"{folder} is damaged and is made again")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as beside:
            new, wall, cpu = Path(beside, "new"), time.perf_counter(), time.process_time()
            new.mkdir()
            with _loop.alone(made["seed"]):
                found = make(new)
            spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            about = {"recipe": made, "report": spent | found, "files": _sums(new)}
            write_json(new / "asset.json", about | {"sum": digest(about)})
            if folder.exists() and not _whole(folder):
                folder.rename(Path(beside, "old"))
            new.rename(folder)
    except OSError as error:
        if not _whole(folder):  # else another process was faster, with the same bits
            raise WorkError(f"{folder} cannot be written: {error.strerror or error}") from None
    return folder


def _whole(folder: Path) -> bool:
    try:
        about = read_json(folder / "asset.json")
        return about.pop("sum") == digest(about) and about["files"] == _sums(folder)
    except (OSError, WorkError, AttributeError, KeyError, TypeError):
        return False


def _sums(folder: Path) -> dict[str, str]:
    return {file.name: digest(file.read_bytes()) for file in sorted(folder.iterdir()) if file.name != "asset.json"}


def _named(task: Task) -> list[str]:
    try:
        return [f"{task.__module__}.{task.__qualname__}", inspect.getsource(task)]
    except (AttributeError, OSError, TypeError):
        raise InputError(f"a task is a function that is written in a file, so that its code is known; got {task!r}") from None


def _divides(part: int, d: int) -> None:
    if d % part:
        raise InputError(f"d is a multiple of {part} here, got {d}; for example {part * max(1, round(d / part))}")
