"""Bundles with random slots and heads, made in a moment: tasks of every kind, on the tiny backbones."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from engine import _tiny as tiny

from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.core.site import find
from anabranch.engine import store
from anabranch.engine.backbone import backbone_of
from anabranch.task import kind as kinds

AT = ["attention.query[-1:]", "attention.value[-1:]"]
FACTS: dict[str, dict[str, Any]] = {
    "classify": {"labels": tiny.COLOURS}, "multilabel": {"labels": tiny.ANIMALS}, "regress": {"mean": [120.0], "std": [10.0]},
    "tag": {"labels": ["O", "B-PER", "I-PER", "B-BEAST"], "common": 0}, "pair": {"labels": ["same", "other"], "two": True},
    "choice": {}, "retrieve": {}, "generate": {},
}  # fmt: skip
ROWS = {kind: tiny.rows(kind, 12, seed=9) for kind in tiny.KINDS}
LONG = " ".join(["the"] * 300)


def record(kind: str, rung: str) -> dict[str, Any]:
    rest = {"labels": [], "two": False, "mean": [], "std": [], "metric": "accuracy", "valid": 0.5, "test": 0.5, "max_length": 128}
    return rest | {"kind": kind, "rung": rung, "description": None} | FACTS[kind]


def bundle(
    place: Path, tasks: Mapping[str, str], backbone: str = "bert", seed: int = 0, rank: int = 4, dtype: str = "float32"
) -> Path:
    """``tasks``: name -> kind, or ``kind probe`` or ``kind shared`` instead of an own slot. Returns ``place``, as a run."""
    f = backbone_of(str(tiny.home() / backbone), "float32")
    folder, rng = place / "bundle", torch.Generator().manual_seed(seed)
    bank = Bank.make(make("delta", {"lora": {"rank": rank}}), make("gate", "by_task"), find(f.f, AT), rng)

    def slot() -> dict[str, torch.Tensor]:
        tree = {
            f"0/{s}": {n: 0.3 * torch.randn(t.shape, generator=rng) for n, t in p.items()} for s, p in bank.fresh(rng).items()
        }
        return store.pack(tree, "bf16")

    records, common = {}, slot()
    for name, said in tasks.items():
        kind, _, rung = said.partition(" ")
        about = record(kind, rung or "delta")
        outputs, inputs = kinds.find(kind)(about["labels"], about["two"], about["mean"], about["std"]).width(f.d)
        head = {"W": torch.randn(outputs, inputs, generator=rng), "b": torch.randn(outputs, generator=rng),
                "mean": torch.zeros(inputs), "scale": torch.ones(inputs)} if outputs else {}  # fmt: skip
        corpus = tiny.DOCUMENTS if kind == "retrieve" else None
        records[name] = store.save_task(folder, about, slot() if not rung else {}, head, {}, corpus)
    users = [name for name, said in tasks.items() if said.endswith("shared")]
    store.save(folder, {
        "backbone": {"id": f.id, "fingerprint": f.fingerprint}, "dtype": dtype, "banks": [store.bank_card(bank)], "tasks": records,
        "shared": {"file": store.put(folder, {f"slot/{n}": t for n, t in common.items()}), "tasks": users} if users else None,
        "made": {"seed": seed, "plan": {"tasks": {name: {"data": "elsewhere"} for name in tasks}}},
    })  # fmt: skip
    return place


def zipped(run: Path, inside: str = "", **more: bytes) -> bytes:
    """The files of a run's bundle as a zip, below ``inside``; ``more``: further members, or others' content."""
    members = {p.name: p.read_bytes() for p in sorted((run / "bundle").iterdir())} | more
    return archive({inside + name: data for name, data in members.items()})


def archive(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return out.getvalue()


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for v in value.values() for x in numbers(v)]
    return [x for v in value for x in numbers(v)] if isinstance(value, list) else [value] if isinstance(value, float) else []


def close(found: Any, wanted: Any) -> bool:
    """Whether answers are the same up to rounding: the machine's matrix products may depend on the number of rows."""
    a, b = numbers(found), numbers(wanted)
    return (
        words(found) == words(wanted)
        and len(a) == len(b)
        and all(abs(x - y) <= 1e-4 + 1e-5 * abs(y) for x, y in zip(a, b, strict=True))
    )


def words(value: Any) -> Any:
    """An answer without its numbers."""
    if isinstance(value, dict):
        return {k: words(v) for k, v in value.items()}
    return [words(v) for v in value] if isinstance(value, list) else None if isinstance(value, float) else value
