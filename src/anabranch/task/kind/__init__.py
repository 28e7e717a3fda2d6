"""The eight kinds of task, one file each: what is encoded, head, loss, answers, default metric."""

import importlib
import pkgutil

from anabranch.core.names import method_of
from anabranch.errors import InputError, nearest
from anabranch.task.kind._base import Kind


def kinds() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> type[Kind]:
    if name not in kinds():
        raise InputError(f"no kind {name!r}{nearest(name, kinds())}")
    found: type[Kind] = method_of(importlib.import_module(f"{__name__}.{name}"))
    return found
