"""Files that appear whole or not at all, and results that are kept under a hash of what made them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from anabranch.errors import WorkError

if TYPE_CHECKING:  # a verdict is shown again without torch
    from torch import Tensor


def cache_dir() -> Path:
    """The user's cache: ``ANABRANCH_CACHE``, else ``anabranch`` in the system's cache folder."""
    home = os.environ.get("ANABRANCH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "anabranch"
    return Path(home)


def clear() -> int:
    """Empties the user's cache; returns the bytes that it held."""
    folder = cache_dir()
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return size


def digest(*parts: Any) -> str:
    """A hash of JSON-able values and bytes, 16 hexadecimal digits."""
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        h.update(len(data).to_bytes(8, "little") + data)
    return h.hexdigest()


def write(path: Path, make: Callable[[Path], Any]) -> Path:
    """``make`` writes to a file beside ``path``, which then takes its name: a reader never sees half a file.

    WorkError names the file when the disk is full or may not be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: Any) -> Path:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return write(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # broken, a number of 5,000 digits, lists in lists in lists
        raise WorkError(f"{path} is damaged ({error}); delete it, or restore it from a copy") from None


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object and its checksum, as :func:`read_sealed` wants to find it."""
    body = {k: v for k, v in value.items() if k != "sum"}
    return body | {"sum": digest(json.loads(json.dumps(body)))}  # as a reader will find it: all keys are strings


def read_sealed(path: Path) -> dict[str, Any]:
    """An object without its checksum; WorkError where it does not fit. One without any is an older version's."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise WorkError(f"{path} is damaged (no JSON object); delete it, or restore it from a copy")
    said = found.pop("sum", None)
    if said is not None and not fits(said, found):
        raise WorkError(f"{path} is damaged: its checksum does not fit its content; delete it, or restore it from a copy")
    return found


def fits(said: Any, value: Any) -> bool:
    """Whether this is the checksum of a JSON value; none is that of lists in lists too deep to be written."""
    try:
        return bool(said == digest(value))
    except RecursionError:
        return False


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", note: Mapping[str, Any] | None = None) -> Path:
    """safetensors whose header holds a JSON note and a checksum of tensors and note."""
    from safetensors.torch import save_file

    whole = {n: t.detach().contiguous().cpu() for n, t in tensors.items()}
    about = json.dumps({"note": note or {}, "sum": digest(checksum(whole), note or {})})
    return write(path, lambda part: save_file(whole, part, metadata={"about": about}))  # two keys would come in any order


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Tensors and note; WorkError names the file when it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 - not a dict
            about = json.loads(file.metadata()["about"])
        note, whole = about["note"], about["sum"] == digest(checksum(tensors), about["note"])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise WorkError(f"{path} is damaged ({error})") from None
    if not whole:
        raise WorkError(f"{path} is damaged: its checksum does not fit its content")
    return tensors, note


def recall(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]] | None:
    """What :func:`write_tensors` left in a cache; None where it has nothing, or something damaged, which is deleted."""
    try:
        return read_tensors(path) if path.exists() else None
    except WorkError:
        path.unlink()
        return None


def checksum(tensors: "Mapping[str, Tensor]") -> str:
    import torch

    h = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        t = tensors[name].detach().contiguous().cpu()
        h.update(f"{name} {t.dtype} {list(t.shape)}".encode())
        if t.numel():
            h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()
