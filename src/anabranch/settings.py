"""What a user may set of a method: its signature is its configuration."""

import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any, get_type_hints

from anabranch.errors import InputError, nearest
from anabranch.types import within


def settings_of(method: Any) -> dict[str, inspect.Parameter]:
    """What a user may set: a class's fields, a function's keyword-only parameters."""
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(method).parameters
    return {n: p for n, p in parameters.items() if inspect.isclass(method) or p.kind is kind}


def defaults(method: Any) -> dict[str, Any]:
    return {n: p.default for n, p in settings_of(method).items() if p.default is not inspect.Parameter.empty}


def check(method: Any, settings: Any, label: str) -> dict[str, Any]:
    """The settings, as the declared types; InputError names the setting, its range, what came and what to type."""
    known = settings_of(method)
    if not isinstance(settings, Mapping):
        raise InputError(f"{label}: settings are {{name: value}}, got {settings!r}")
    for name in settings:
        if name not in known:
            raise InputError(f"{label} has no setting {name!r}{nearest(name, known)}")
    hints = get_type_hints(method.__init__ if inspect.isclass(method) else method, include_extras=True)
    return {n: within(v, hints.get(n, Any), f"{label}: {n}") for n, v in settings.items()}


def card(method: Any) -> dict[str, Any]:
    """A method as data, for bundles and pages: where it lives, its settings, the catalogue rows that it implements."""
    kind = method if inspect.isclass(method) else getattr(method, "__wrapped__", type(method))
    kind = method if inspect.isfunction(method) and not hasattr(method, "settings") else kind
    module = sys.modules[kind.__module__]
    found = {n: getattr(method, n, p.default) for n, p in settings_of(kind).items()}
    settings = getattr(method, "settings", {n: v for n, v in found.items() if v is not inspect.Parameter.empty})
    name = re.sub(r"^anabranch\.", "", kind.__module__)
    return {"method": name, "settings": settings, "rows": list(getattr(module, "rows", ()))}
