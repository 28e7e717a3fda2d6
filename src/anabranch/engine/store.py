"""Bundles on disk: ``bundle.json`` and content-named safetensors. A change is new files, then one rename of bundle.json.

Never pickle. Opening checks format, the backbone's fingerprint and every checksum, and names the wrong file.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os.path import isfile  # which says no to a name that is too long, where a Path raises OSError
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from anabranch.core.bank import Bank, Tree
from anabranch.core.names import make
from anabranch.core.site import Site
from anabranch.engine.algebra import in_f
from anabranch.engine.backbone import Backbone
from anabranch.engine.cache import checksum, digest, fits, read_json, read_tensors, recall, write, write_json, write_tensors
from anabranch.engine.job import Head
from anabranch.errors import InputError, WorkError, nearest
from anabranch.settings import card
from anabranch.task.kind._base import Post

FORMAT = 1
TENSORS, CORPUS = r"[0-9a-f]{32}\.safetensors", r"[0-9a-f]{16}\.jsonl"


class Record(BaseModel, strict=True, extra="allow"):
    """What a task's entry in bundle.json must say; what it says is data from outside."""

    kind: str
    rung: Literal["probe", "delta", "shared"]
    metric: str
    labels: list[str | int | float]
    two: bool
    mean: list[float]
    std: list[float]
    max_length: int | None = Field(None, ge=1)
    valid: float | None = None
    test: float | None = None
    description: str | None = None
    common: int = 0
    file: str | None = None
    corpus: str | None = None


class Card(BaseModel, strict=True, extra="allow"):
    """The numbers of a bank's card."""

    stage: int = Field(ge=0)
    routes: int = Field(ge=0)


def pack(tree: Tree, form: str) -> dict[str, Tensor]:
    """A slot's tensors as stored: ``bf16``, or ``int8`` with one scale per tensor; whole numbers as they are."""
    out: dict[str, Tensor] = {}
    for site, p in tree.items():
        for name, t in p.items():
            key = f"{site}/{name}"
            if not t.is_floating_point():
                out[key] = t
            elif form == "bf16":
                out[key] = t.bfloat16()
            else:
                scale = t.abs().max().clamp(min=1e-12) / 127
                out[key], out[f"{key}|scale"] = (t / scale).round().to(torch.int8), scale.float().reshape(1)
    return out


def unpack(packed: Mapping[str, Tensor]) -> Tree:
    """What :meth:`pack` stored, as fp32."""
    tree: Tree = {}
    for key, t in packed.items():
        site, _, name = key.rpartition("/")
        if key.endswith("|scale"):
            continue
        scale = packed.get(f"{key}|scale")
        t = t.float() * scale[0] if scale is not None else t.float() if t.is_floating_point() else t
        tree.setdefault(site, {})[name] = t
    return tree


def cut(tree: Tree, i: int) -> Tree:
    """The part of a slot that belongs to bank i, by site."""
    return {site.partition("/")[2]: p for site, p in tree.items() if site.startswith(f"{i}/")}


def size(packed: Mapping[str, Tensor]) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in packed.values())


def put(folder: Path, tensors: Mapping[str, Tensor]) -> str:
    """Stores tensors under their checksum; returns the name of the file."""
    content = checksum(tensors)
    path = folder / f"{content}.safetensors"
    kept = recall(path)
    if kept is None or checksum(kept[0]) != content:  # absent, or damaged since it was written
        write_tensors(path, tensors)
    return path.name


def get(folder: Path, name: str) -> dict[str, Tensor]:
    if Path(name).name != name:
        raise WorkError(f"{folder / 'bundle.json'} names a file outside the bundle: {name!r}")
    path = folder / name
    if not isfile(path):
        raise WorkError(f"{path} is missing; the bundle is incomplete, restore it from a copy")
    tensors, _ = read_tensors(path)
    if checksum(tensors) != path.stem:
        raise WorkError(f"{path} is damaged: its content does not fit its name")
    return tensors


def save_task(folder: Path, record: dict[str, Any], slot: Mapping[str, Tensor], head: Head, post: Post,
              corpus: Mapping[str, str] | None = None, gate: Mapping[str, Tensor] | None = None,
              after: Mapping[str, Tensor] | None = None) -> dict[str, Any]:  # fmt: skip
    """Writes a task's tensors; returns its entry for bundle.json. ``slot``, ``gate`` and ``after`` are packed.

    ``slot`` is empty for a probe or shared slots.
    """
    parts = {f"slot/{n}": t for n, t in slot.items()} | {f"head/{n}": t.bfloat16() for n, t in head.items()}
    parts |= {f"post/{n}": t.float() for n, t in post.items()} | {f"gate/{n}": t for n, t in (gate or {}).items()}
    parts |= {f"after/{n}": t for n, t in (after or {}).items()}
    entry = record | {"file": put(folder, parts) if parts else None}
    if corpus is not None:
        lines = "".join(json.dumps({"id": i, "text": t}, ensure_ascii=False) + "\n" for i, t in corpus.items())
        name = f"{digest(lines.encode())}.jsonl"
        write(folder / name, lambda part: part.write_text(lines, encoding="utf-8"))
        entry["corpus"] = name
    return entry


class Parts(NamedTuple):
    """What a task's file holds; slot and gate are packed."""

    slot: dict[str, Tensor]
    head: Head
    post: Post
    gate: dict[str, Tensor]
    after: dict[str, Tensor]  # what corrects its features behind f


def parts_of(folder: Path, name: str | None) -> Parts:
    out: dict[str, dict[str, Tensor]] = {"slot": {}, "head": {}, "post": {}, "gate": {}, "after": {}}
    for key, t in (get(folder, name) if name else {}).items():
        group, _, rest = key.partition("/")
        out[group][rest] = t
    head, after = ({n: t.float() for n, t in out[group].items()} for group in ("head", "after"))
    return Parts(out["slot"], head, out["post"], out["gate"], after)


def corpus_of(folder: Path, name: str) -> dict[str, str]:
    path = folder / name
    if Path(name).name != name or not isfile(path):
        raise WorkError(f"{path} is missing; the bundle is incomplete, restore it from a copy")
    data = path.read_bytes()
    if digest(data) != path.stem:
        raise WorkError(f"{path} is damaged: its content does not fit its name")
    rows = [json.loads(line) for line in data.decode().split("\n") if line]  # splitlines would cut at U+2028 too
    return {row["id"]: row["text"] for row in rows}


def bank_card(bank: Bank) -> dict[str, Any]:
    """A bank without its slots, as data."""
    layout = {t: {s: {n: list(shape) for n, shape in p.items()} for s, p in bank.tables[t].layout.items()} for t in bank.tables}
    kinds = {t: str(bank.tables[t].data.dtype)[6:] for t in bank.tables}
    return {"delta": card(bank.delta), "gate": card(bank.gate), "sites": [vars(s) for s in bank.sites], "stage": bank.stage,
            "routes": bank.routes, "layout": layout, "kinds": kinds}  # fmt: skip


def bank_of(entry: Mapping[str, Any], f: nn.Module) -> Bank:
    """The empty bank of a card, which comes from outside: ValueError for slots larger than f and for sites that it has not."""
    numbers = sum(math.prod(shape) for layout in entry["layout"].values() for p in layout.values() for shape in p.values())
    if numbers > 10**6 + 4 * sum(p.numel() for p in f.parameters()):
        raise ValueError(f"a slot of {numbers:.3g} numbers is larger than f")
    Card.model_validate(entry)
    sites = [Site(**s) for s in entry["sites"]]
    for s in sites:
        if (here := in_f(f, s)) != s:
            raise ValueError(f"f has {here}, and not {s}")
    if lost := {"own", "keys", "gate", "shared"} - entry["layout"].keys():
        raise ValueError(f"a bank without the table {sorted(lost)[0]}")
    there = {site for table, layout in entry["layout"].items() if table == "own" or table.startswith("fixed") for site in layout}
    if there != {s.key for s in sites}:
        raise ValueError(f"slots at {sorted(there)}, and not at the bank's sites")
    made = {}
    for family in ("delta", "gate"):
        name = entry[family]["method"].partition(".")[2]
        made[family] = make(family, {name: entry[family]["settings"]})
    bank = Bank(made["delta"], made["gate"], sites, {}, entry["stage"], entry["routes"])
    for table, layout in entry["layout"].items():
        shapes = {s: {n: torch.Size(shape) for n, shape in p.items()} for s, p in layout.items()}
        bank.table(table, shapes, getattr(torch, entry["kinds"][table]))
    return bank


def save(folder: Path, bundle: dict[str, Any]) -> None:
    """Makes these contents the bundle, in one rename, and then drops files that it no longer names."""
    bundle = {k: v for k, v in bundle.items() if k != "format"}
    write_json(folder / "bundle.json", {"format": FORMAT, "sum": digest(bundle)} | bundle)
    parts = [bundle, *([bundle["experts"]] if bundle.get("experts") else [])]
    entries = [entry for b in parts for entry in (*b["tasks"].values(), *b["banks"], b.get("shared") or {})]
    used = {name for t in entries for name in (t.get("file"), t.get("corpus"))}
    for path in folder.iterdir():
        if path.name != "bundle.json" and path.name not in used and path.suffix in (".safetensors", ".jsonl", ".part"):
            path.unlink()


def open_bundle(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and content of a run's or a bundle's bundle.json. InputError when there is none, or it is too new."""
    folders = [p for p in (path / "bundle", path) if (p / "bundle.json").is_file()]
    if not folders:
        if (path / "plan.json").is_file():
            raise InputError(f"{path} is a run that is not finished: go on with anabranch fit PLAN --out {path} --resume")
        near = [p.parent.parent.name for p in path.parent.glob("*/bundle/bundle.json")] if path.parent.is_dir() else []
        raise InputError(f"{path} is not a run or a bundle: no bundle.json in it{nearest(path.name, near)}")
    bundle = read_json(folders[0] / "bundle.json")
    if not isinstance(bundle, dict) or not isinstance(bundle.get("format"), int):
        raise WorkError(f"{folders[0] / 'bundle.json'} is damaged: it names no format")
    if bundle["format"] > FORMAT:
        raise InputError(
            f"{folders[0]} has format {bundle['format']}, this version reads up to {FORMAT}: pip install -U anabranch"
        )
    if not fits(bundle.pop("sum", None), {k: v for k, v in bundle.items() if k != "format"}):
        raise WorkError(f"{folders[0] / 'bundle.json'} is damaged: its checksum does not fit its content")
    return folders[0], bundle


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """What bundle.json says is data from outside: with a checksum that fits it may still say anything. WorkError then."""
    try:
        yield
    except (InputError, WorkError, OSError):
        raise
    except ValidationError as error:
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r:.60}"
        raise WorkError(f"{folder / 'bundle.json'} describes no bundle ({said})") from None
    except Exception as error:
        said = next(iter(str(error).splitlines()), "")
        raise WorkError(f"{folder / 'bundle.json'} describes no bundle ({type(error).__name__}: {said:.200})") from error


def same_backbone(backbone: Backbone, bundle: Mapping[str, Any], path: Path) -> None:
    made = bundle["backbone"]
    if made["fingerprint"] != backbone.fingerprint:
        raise InputError(
            f"{path} was made for backbone {made['id']!s:.200} with fingerprint {made['fingerprint']!s:.8}, got {backbone.id}"
            f" with {backbone.fingerprint[:8]}: its deltas would not fit; use the same weights"
        )


def copy(old: Path, new: Path) -> None:
    """A checked file of one bundle into another."""
    write(new, lambda part: part.write_bytes(old.read_bytes()))
