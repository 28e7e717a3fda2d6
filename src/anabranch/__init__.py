"""anabranch: adapt ONE pretrained backbone to MANY tasks. ``y = f(x) + sum_t w_t(x, task) * Delta_t(x)``."""

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "load": "anabranch.engine.model", "fit": "anabranch.engine.fit", "Model": "anabranch.engine.model",
    "Library": "anabranch.engine.library",
    "Adapted": "anabranch.core.adapt", "Bank": "anabranch.core.bank",
    "find": "anabranch.core.names", "every": "anabranch.core.names", "card": "anabranch.core.names",
    "InputError": "anabranch.errors", "WorkError": "anabranch.errors",
}  # fmt: skip


def __getattr__(name: str) -> Any:  # imports stay lazy: the catalogue and the CLI's help need no torch
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    from anabranch.core.names import FAMILIES

    if name in FAMILIES:
        return importlib.import_module(f"anabranch.{name}")
    raise AttributeError(f"anabranch has no {name!r}")
