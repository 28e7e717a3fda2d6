"""Rows as a user gives them: what a kind reads of them, what they lack, as :class:`Rows` and back; and answers that fail."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from anabranch.errors import InputError, WorkError
from anabranch.task.data import Rows
from anabranch.task.kind import Kind


def needs(kind: Kind, name: str) -> list[str]:
    """The keys of a row that a kind reads."""
    keys = {"tag": ["tokens"], "choice": ["text", "choices"], "pair": ["text", "text_b"]}.get(name, ["text"])
    return keys + ["text_b"] * (kind.two and "text_b" not in keys)


def missing(kind: Kind, name: str, row: Mapping[str, Any]) -> str:
    """What a row lacks for a kind, in words; empty when nothing."""
    for key in needs(kind, name):
        many = key in ("tokens", "choices")
        value = row.get(key)
        if many and not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
            return f"needs {key!r}, a list of strings"
        if not many and not isinstance(value, str):
            return f"needs {key!r}, a string"
    return ""


def rows_of(rows: Sequence[Mapping[str, Any]]) -> Rows:
    def column(name: str) -> Any:
        return [r.get(name) for r in rows] if rows and all(r.get(name) is not None for r in rows) else None

    text = [r.get("text") or " ".join(r.get("tokens") or ()) for r in rows]
    return Rows(text, column("text_b"), column("tokens"), column("choices"), [None] * len(rows))


def dicts(rows: Rows) -> list[dict[str, Any]]:
    names = [n for n in ("text", "text_b", "tokens", "choices") if getattr(rows, n) is not None]
    return [{n: getattr(rows, n)[i] for n in names} for i in range(len(rows))]


@contextmanager
def told_of(task: str) -> Iterator[None]:
    """What a bundle says of a task and what it holds for it may not go together, which shows when it answers."""
    try:
        yield
    except (InputError, WorkError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = next(iter(str(error).splitlines()), "")
        said = f"{type(error).__name__}: {said:.200}"
        raise WorkError(f"task {task}: its head does not go with its record ({said})") from error
