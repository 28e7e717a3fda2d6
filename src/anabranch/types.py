"""Ranges, declared once: plan checks, CLI help, error texts, docs and test generators read these annotations."""

import operator
import types
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt

from anabranch.errors import InputError, nearest

Share = Annotated[float, Interval(gt=0, le=1)]  # a share in (0, 1]
Fraction = Annotated[float, Interval(ge=0, lt=1)]  # a fraction in [0, 1): may be nothing, may not be all
Count = Annotated[int, Ge(1)]  # a whole number, at least 1
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Method:
    """Says of a setting that it is a method of this family itself: a name, {name: settings}, or an object that is one."""

    family: str

    def check(self, value: Any, label: str) -> None:
        from anabranch.core.names import make  # which reads ranges from here

        if value is None or isinstance(value, (int, float, list)):
            raise InputError(f"{label} is the name of a {self.family} or {{name: {{setting: value}}}}, got {value!r}")
        try:
            make(self.family, value)
        except InputError as error:
            raise InputError(f"{label}: {error}") from None


Balance = Annotated[Any, Method("balance")]
Merge = Annotated[Any, Method("merge")]
DeltaKind = Annotated[Any, Method("delta")]

_HOLDS = {Ge: operator.ge, Gt: operator.gt, Le: operator.le, Lt: operator.lt}


def within(value: Any, hint: Any, label: str) -> Any:
    """``value`` if it fits ``hint``: a plain type, Annotated bounds, a Literal, a union; other types are not checked.

    A whole float becomes an int; an int becomes a float, and so does text (YAML reads ``1e-3`` as text).
    """
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    wrong = f"{label} is {words(hint)}, got {value!r}"
    if get_origin(base) in (Union, types.UnionType):
        for option in get_args(base):
            with suppress(InputError):
                return within(value, option, label)
        raise InputError(wrong)
    if get_origin(base) is Literal and value not in get_args(base):
        raise InputError(wrong + nearest(value, get_args(base)))
    if base is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if base is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)
    plain = base in (int, float, bool, str, types.NoneType)
    if plain and (not isinstance(value, base) or (base is int and isinstance(value, bool))):
        raise InputError(wrong)
    for bound in get_args(hint)[1:] if base is Any else ():
        if isinstance(bound, Method):
            bound.check(value, label)
    for edge, limit in edges(hint):
        if not _HOLDS[type(edge)](value, limit):
            share = limit == 1 and isinstance(edge, (Le, Lt)) and _HOLDS[type(edge)](value / 100, limit)
            raise InputError(wrong + (f": for {value:g} per cent pass {value / 100:g}" if share else ""))
    return value


def edges(hint: Any) -> Iterator[tuple[Any, Any]]:
    """The bounds of an Annotated hint, one by one, each with its limit."""
    for bound in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        for edge in bound if isinstance(bound, GroupedMetadata) else (bound,):
            if type(edge) in _HOLDS:
                yield edge, getattr(edge, type(edge).__name__.lower())


def words(hint: Any) -> str:
    """A range in words: ``a number in (0, 1]``."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(words, get_args(hint)))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is not Annotated:
        plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", types.NoneType: "null"}
        return plain.get(hint, str(hint))
    if isinstance(get_args(hint)[1], Method):
        return f"a {get_args(hint)[1].family}"
    low, high, text = "(-inf", "inf)", words(get_args(hint)[0])
    for edge, limit in edges(hint):
        low = f"[{limit}" if isinstance(edge, Ge) else f"({limit}" if isinstance(edge, Gt) else low
        high = f"{limit}]" if isinstance(edge, Le) else f"{limit})" if isinstance(edge, Lt) else high
    return f"{text} in {low}, {high}" if list(edges(hint)) else text
