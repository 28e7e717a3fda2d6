"""The folders are the registry: ``merge/ties.py`` is ``find("merge.ties")`` and ``--merge ties`` and ``merge: ties``.

A method is the object in its file that carries the file's name: a function ``ties``, or a class ``Ties``.
"""

import importlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Mapping
from typing import Any

from anabranch.errors import InputError, nearest
from anabranch.settings import check, defaults, settings_of

FAMILIES = (
    "delta", "gate", "merge", "balance", "select", "stream", "shift", "compress", "decode", "prompt", "probe",
    "backbone", "pretrain", "bench", "world",
)  # fmt: skip


class Family(types.ModuleType):
    """A family's package: attributes are its methods, loaded on first use; a submodule shows as the method it holds."""

    def __getattr__(self, name: str) -> Any:
        try:
            return find(f"{self.__name__.rpartition('.')[2]}.{name}")
        except InputError as error:
            raise AttributeError(f"{self.__name__} has no {name!r}{str(error).partition(repr(name))[2]}") from error

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, types.ModuleType) and value.__name__ == f"{self.__name__}.{name}" and name[0] != "_":
            value = method_of(value)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return every(self.__name__.rpartition(".")[2])


def family(module: str) -> None:
    """Called by a family's ``__init__`` with its ``__name__``: turns the package into a :class:`Family`."""
    sys.modules[module].__class__ = Family


def every(name: str) -> list[str]:
    """The methods of a family, sorted: the public files of its folder."""
    if name not in FAMILIES:
        raise InputError(f"no family {name!r}{nearest(name, FAMILIES)}")
    package = importlib.import_module(f"anabranch.{name}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(path: str) -> Any:
    """The method at ``"family.name"``; ``-`` and ``_`` are the same. Raises InputError with the nearest names."""
    family_name, _, name = path.partition(".")
    name = name.replace("-", "_")
    if name in every(family_name):
        return method_of(importlib.import_module(f"anabranch.{family_name}.{name}"))
    beyond = vars(importlib.import_module(f"anabranch.{family_name}")).get("beyond", dict)
    more = {} if name.startswith("_") else beyond()  # another library's methods: name -> what loads it
    if name in more:
        return more[name]()
    raise InputError(f"no {family_name} {name!r}{nearest(name, [*every(family_name), *more])}")


def method_of(module: types.ModuleType) -> Any:
    name = module.__name__.rpartition(".")[2]
    camel = "".join(part.capitalize() for part in name.split("_"))
    method = vars(module).get(name, vars(module).get(camel))
    return module if method is None or isinstance(method, types.ModuleType) else method


def make(family_name: str, spec: Any, **fixed: Any) -> Any:
    """A configured method from a plan's words: ``"lora"``, ``{"lora": {"rank": 16}}``, or an object that is one.

    A class is instantiated, a function gets its keyword-only settings bound; settings are checked against their ranges.
    """
    if not isinstance(spec, (str, Mapping)):
        return spec
    if isinstance(spec, Mapping) and len(spec) != 1:
        raise InputError(f"a {family_name} is a name or {{name: {{setting: value}}}}, got {dict(spec)!r}")
    name, settings = (spec, None) if isinstance(spec, str) else next(iter(spec.items()))
    method, label = find(f"{family_name}.{name}"), f"{family_name} {name}"
    settings = check(method, {} if settings is None else settings, label) | fixed
    missing = sorted(settings_of(method).keys() - defaults(method).keys() - settings.keys())
    if missing:
        raise InputError(f"{label} needs {', '.join(missing)}: {{{name}: {{{missing[0]}: ...}}}}")
    if inspect.isclass(method):
        return method(**settings)
    bound = {**defaults(method), **settings}
    configured = lambda *args, **more: method(*args, **bound, **more)  # noqa: E731
    configured.__name__, configured.__wrapped__, configured.settings = name, method, bound  # type: ignore[attr-defined]
    return configured
