"""Merging checkpoints on disk, tensor by tensor: plain Hugging Face folders in, one out.

    out = base + combine([model_j - base for j])      in fp32, then in the base's dtype

Tensors are read through memory maps and written as they are made. At most (models + 2) times the largest tensor, in fp32, is
in memory; methods that decompose matrices (their files say so) need their own room on top.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from inspect import signature
from itertools import groupby
from os.path import isfile  # which says no to a name that is too long, where a Path raises OSError
from pathlib import Path
from sys import modules
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anabranch.core.names import every, find, make
from anabranch.engine.cache import write_json
from anabranch.engine.changes import CUT, Changes, Kept
from anabranch.engine.run import Told
from anabranch.errors import InputError, WorkError, nearest

STRETCH = 32 * CUT  # numbers that are written at once
SHARD = 5 * 10**9  # bytes of a file, at most, unless one tensor is larger
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*",
          "merges.txt", "*.model", "*.jinja", "*processor_config.json", "modules.json", "sentence_*_config.json",
          "1_Pooling/config.json")  # fmt: skip
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
DTYPES = {str(t)[6:]: t for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}


class Place(NamedTuple):
    """What a merge may know of the tensor it works on, where banks have a Site."""

    name: str
    key: str


class Checkpoint:
    """A folder's tensors by name, as memory maps: what is read is the system's file cache, not memory of this process."""

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.tensors = Path(folder), dict[str, Tensor]()
        for path, names in self.files().items():
            try:
                with safe_open(path, framework="pt") as file:
                    held = set(file.keys())
                    lost = sorted((names or held) - held)
                    if lost:
                        raise InputError(f"{path} lacks {lost[0]}, which {INDEX} says it holds; restore the file")
                    self.tensors |= {n: file.get_tensor(n) for n in file.keys() if n in (names or held)}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} is damaged or no safetensors file ({error})") from None
        odd = [n for n, t in self.tensors.items() if t.dtype not in TYPES]
        if odd:
            raise InputError(f"{self.folder}: {odd[0]} is {self.tensors[odd[0]].dtype}, which cannot be merged")

    def files(self) -> dict[Path, set[str]]:
        """Weight files, each with the names that the index gives it; none for a single file."""
        where = self.folder
        if not where.is_dir():
            raise InputError(f"no folder {where}; expected one with config.json and {WEIGHTS}, such as save_pretrained writes")
        if (where / WEIGHTS).is_file():
            return {where / WEIGHTS: set()}
        if not (where / INDEX).is_file():
            pickles = sorted(where.glob("*.bin"))
            more = f"; {pickles[0].name} is a pickle, which can run code: save it anew as safetensors" if pickles else ""
            raise InputError(f"{where} has neither {WEIGHTS} nor {INDEX}{more}")
        found: dict[Path, set[str]] = {}
        try:
            for name, file in json.loads((where / INDEX).read_text(encoding="utf-8"))["weight_map"].items():
                found.setdefault(where / Path(file).name, set()).add(name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{where / INDEX} is damaged ({error!r})") from None
        lost = [path for path in found if not isfile(path)]
        if lost:
            raise InputError(f"{lost[0]} is missing, but {INDEX} names it")
        return found

    def like(self, other: "Checkpoint") -> None:
        """InputError unless both hold the same names, shapes and sorts of numbers."""
        mine, theirs = self.tensors, other.tensors
        for one, two in ((self, other), (other, self)):
            lost = [n for n in two.tensors if n not in one.tensors]
            if lost:
                more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
                raise InputError(
                    f"{one.folder} lacks {', '.join(lost[:3])}{more}, which {two.folder} has; merge models of one kind"
                )
        for name, t in mine.items():
            u = theirs[name]
            if t.shape != u.shape or t.is_floating_point() != u.is_floating_point():
                a, b = (f"{list(x.shape)} {str(x.dtype)[6:]}" for x in (t, u))
                raise InputError(f"{name} is {a} in {self.folder} and {b} in {other.folder}; merge models of one architecture")


class Shards:
    """Safetensors files of a folder, whose tensors are written in any order and from any thread, a stretch at a time."""

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
        self.folder, self.lock, self.at = folder, threading.Lock(), dict[str, tuple[IO[bytes], int]]()
        groups, held = [dict[str, int]()], 0
        for name, t in tensors.items():
            size = t.numel() * dtypes[name].itemsize
            if groups[-1] and held + size > SHARD:
                groups.append({})
                held = 0
            groups[-1][name] = size
            held += size
        self.size, self.opened, where = sum(sum(g.values()) for g in groups), list[IO[bytes]](), dict[str, str]()
        free = shutil.disk_usage(folder).free
        if free < self.size:
            raise WorkError(f"the merge takes {self.size / 1e9:.2f} GB, but {folder.parent} has {free / 1e9:.2f} GB free")
        for i, group in enumerate(groups, 1):
            path = folder / (WEIGHTS if len(groups) == 1 else f"model-{i:05}-of-{len(groups):05}.safetensors")
            header, end = dict[str, Any](__metadata__={"format": "pt"}), 0
            for name, size in group.items():
                header[name] = {
                    "dtype": TYPES[dtypes[name]],
                    "shape": list(tensors[name].shape),
                    "data_offsets": [end, end + size],
                }
                end += size
            head = json.dumps(header, ensure_ascii=False).encode()
            head += b" " * (-len(head) % 8)
            file = path.open("xb")
            self.opened.append(file)
            file.write(len(head).to_bytes(8, "little") + head)
            file.truncate(8 + len(head) + end)
            self.at |= {name: (file, 8 + len(head) + header[name]["data_offsets"][0]) for name in group}
            where |= dict.fromkeys(group, path.name)
        if len(groups) > 1:
            write_json(folder / INDEX, {"metadata": {"total_size": self.size}, "weight_map": where})

    def put(self, name: str, start: int, part: Tensor) -> None:
        """Numbers ``start`` on of a tensor, flat and in its dtype."""
        file, at = self.at[name]
        with self.lock:
            file.seek(at + start * part.itemsize)
            file.write(part.view(torch.uint8).numpy().data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self.opened:
            with file:
                if error is None:
                    file.flush()
                    os.fsync(file.fileno())


class Norms(dict[str, Tensor]):
    """``whole`` of a merge: {"norm": [t]}, for which all models are read once more, and only if a method asks."""

    def __init__(self, measure: Callable[[], Tensor]) -> None:
        self.measure, self.lock = measure, threading.Lock()

    def __missing__(self, key: str) -> Tensor:
        if key != "norm":
            raise KeyError(key)
        with self.lock:
            if "norm" not in self:
                self["norm"] = self.measure()
        return self["norm"]


def merge_folders(base: str | Path | None, models: Sequence[str | Path], method: Any, out: str | Path, *,
                  dtype: str | None = None, told: Told | None = None) -> dict[str, Any]:  # fmt: skip
    """Merges the ``models``' changes of ``base`` by a method of form combine, a name or {name: settings}, into the new folder
    ``out``: weights, and config and tokenizer of ``base``. Returns what it made.

    ``base`` None: the models themselves are averaged, config and tokenizer are the first one's; only for methods that make
    a model of equal models that model again. ``dtype``: of the result, the base's own unless told. InputError: folders whose
    tensors differ in name or shape (said which), a tensor that is not finite, methods that need data, a used ``out``.
    """
    combine = make("merge", method)
    name = getattr(combine, "__name__", str(method))
    own = getattr(combine, "__wrapped__", combine)
    if not works(own):
        fit = [n for n in every("merge") if works(find(f"merge.{n}"))]
        raise InputError(f"merge {name} needs the tasks' data or deltas, not weights alone; choose from {', '.join(fit)}")
    said = vars(modules[own.__module__])
    least, most = said.get("takes", (1, None))
    if len(models) < least or (most and len(models) > most):
        raise InputError(f"{name} merges {least if least == most else f'at least {least}'} models, got {len(models)}")
    if base is None and "identity" not in said.get("promises", ()):
        raise InputError(f"{name} merges changes of a base model: name the model that all were fine-tuned from")
    forms = {"entries": "entries" in said.get("promises", ()), "pieces": said.get("pieces", False)}
    return stream(base, models, combine, out, dtype=dtype, told=told, **forms) | {
        "method": name, "settings": getattr(combine, "settings", {}),
    }  # fmt: skip


def works(method: Any) -> bool:
    """Whether a merge takes rows [t, *shape] and nothing else."""
    form = next(iter(signature(method).parameters), "")
    return form == "rows" and not vars(modules[method.__module__]).get("needs")


def stream(base: str | Path | None, models: Sequence[str | Path], combine: Callable[..., Tensor], out: str | Path, *,
           dtype: str | None = None, told: Told | None = None, entries: bool = False,
           pieces: bool = False) -> dict[str, Any]:  # fmt: skip
    """:func:`merge_folders` with a callable. ``entries``: combine works number by number, so that it may be given
    pieces. ``pieces``: it takes rows only as ``sweep`` does, so that it may be given :class:`Changes`."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype is one of {', '.join(DTYPES)}, got {dtype!r}{nearest(dtype, DTYPES)}")
    out, began = Path(out).absolute(), time.perf_counter()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty: name a new folder")
    experts = [Checkpoint(m) for m in models]
    origin = experts[0] if base is None else Checkpoint(base)
    config = configured(origin.folder, dtype)
    for expert in experts:
        expert.like(origin)
    merge = Merge(None if base is None else origin, experts, combine, entries, pieces)
    kinds = {n: DTYPES[dtype] if dtype and t.is_floating_point() else t.dtype for n, t in origin.tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as near:  # so that the folder appears whole or not at all
        part = Path(near) / out.name
        part.mkdir()
        for path in {p for pattern in BESIDE for p in origin.folder.glob(pattern) if p.is_file()}:
            (part / path.relative_to(origin.folder)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, part / path.relative_to(origin.folder))
        write_json(part / "config.json", config)
        try:
            with Shards(part, origin.tensors, kinds) as shards:
                merge.run(shards, kinds, told)
        except OSError as error:
            raise WorkError(f"{out} cannot be written: {error.strerror or error}") from None
        files = sorted(str(p.relative_to(part)) for p in part.rglob("*") if p.is_file())
        part.replace(out)
    return {
        "out": str(out), "models": len(models), "tensors": len(kinds), "parameters": sum(t.numel() for t in merge.first.values()),
        "megabytes": round(shards.size / 1e6, 3), "seconds": round(time.perf_counter() - began, 2), "files": files,
    }  # fmt: skip


def configured(folder: Path, dtype: str | None) -> dict[str, Any]:
    """config.json, which says the dtype of the weights."""
    path = folder / "config.json"
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{folder} has no config.json; expected a folder such as save_pretrained writes") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error})") from None
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return config | ({key: dtype} if dtype else {})


class Merge:
    """One pass over all tensors. Several are worked on at once where they are together no larger than the largest."""

    def __init__(self, base: Checkpoint | None, experts: Sequence[Checkpoint], combine: Callable[..., Tensor],
                 entries: bool, pieces: bool) -> None:  # fmt: skip
        self.base, self.experts, self.combine, self.entries, self.pieces = base, experts, combine, entries, pieces
        self.first = (base or experts[0]).tensors
        self.whole, self.halt, self.kept = Norms(self.norms), threading.Event(), Kept()

    def run(self, shards: Shards, kinds: Mapping[str, torch.dtype], told: Told | None) -> None:
        cores, done, t = torch.get_num_threads(), 0, len(self.experts)
        room = (t + 2) * max((t.numel() for t in self.first.values()), default=0)
        each = 1 if self.pieces else t + 2  # times its own size that a tensor takes: what comes out, or all that goes in too
        most = {n: cores if self.entries else room // max(1, each * t.numel()) for n, t in self.first.items()}
        share = {n: max(1, min(cores, many)) for n, many in most.items()}
        order = sorted(share, key=lambda n: (share[n], -self.first[n].numel()))  # the largest first, and alone if need be
        for workers, names in groupby(order, key=lambda n: share[n]):
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                waiting = {pool.submit(self.tensor, n, kinds[n], shards): n for n in names}
                try:
                    for finished in as_completed(waiting):
                        finished.result()
                        done += 1
                        if told:
                            told("merge", done, len(share), waiting[finished])
                except BaseException:  # Ctrl-C too: what runs ends at its next piece
                    self.halt.set()
                    pool.shutdown(cancel_futures=True)
                    raise
                finally:
                    torch.set_num_threads(cores)

    def tensor(self, name: str, dtype: torch.dtype, shards: Shards) -> None:
        first = self.first[name]
        if not first.is_floating_point() or not first.numel():
            self.copied(name, shards)
            return
        rows, n, place = self.changes(name), first.numel(), Place(name, name)
        staged = torch.empty(min(n, STRETCH), dtype=dtype)
        if not self.entries:
            whole = self.combine(rows if self.pieces else rows.all(self.kept), place, self.whole).reshape(-1)
        for start in range(0, n, STRETCH):
            stretch = staged[: n - start]
            for at in range(0, len(stretch), CUT):
                part, here = stretch[at : at + CUT], slice(start + at, start + at + len(stretch[at : at + CUT]))
                d = self.combine(rows[:, here], place, self.whole) if self.entries else whole[here]
                rows.settle(d, part, here.start)
            shards.put(name, start, stretch)

    def changes(self, name: str) -> Changes:
        base = None if self.base is None else (self.base.folder, self.base.tensors[name])
        return Changes(name, base, [(e.folder, e.tensors[name]) for e in self.experts], self.halt)

    def copied(self, name: str, shards: Shards) -> None:
        """Whole numbers, such as buffers of positions, are not merged."""
        first = self.first[name]
        other = next((e for e in self.experts if not torch.equal(e.tensors[name], first)), None)
        if other:
            raise InputError(f"{other.folder}: {name} holds whole numbers other than the base's; they cannot be merged")
        shards.put(name, 0, first.reshape(-1))

    def norms(self) -> Tensor:
        """[t]: the length of each model's change, over all tensors."""
        total = torch.zeros(len(self.experts), dtype=torch.float64)
        for name, t in self.first.items():
            if not t.is_floating_point():
                continue
            rows = self.changes(name)
            for at in range(0, t.numel(), CUT):
                total += torch.linalg.vector_norm(rows[:, at : at + CUT], dim=1).double().square()
        return total.sqrt().float()
