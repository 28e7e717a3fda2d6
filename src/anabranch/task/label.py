"""From cells to labels: which kind a task is, which labels it has, and what a row's label is written down as."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from anabranch.errors import InputError, nearest
from anabranch.task.read import Report, Table, is_sound
from anabranch.task.source import several, text_of

MANY = 20  # more different whole numbers than this are a target, not class names


@dataclass(frozen=True)
class Rows:
    """n rows as columns. A label is None where it is missing, else by kind: classify, choice, pair of classes: index;
    multilabel: sorted indices; tag: one index a token; regress, pair of a number: a list of floats; retrieve: corpus
    ids; generate: text."""

    text: list[str]
    text_b: list[str] | None
    tokens: list[list[str]] | None
    choices: list[list[str]] | None
    label: list[Any]

    def __len__(self) -> int:
        return len(self.text)

    def take(self, ids: list[int]) -> "Rows":
        return Rows(**{name: column and [column[i] for i in ids] for name, column in vars(self).items()})


def label_of(row: dict[str, Any], column: str | list[str]) -> Any:
    """The cell of a label: None where missing; a list for several columns and for a cell that is a JSON list."""
    if isinstance(column, list):
        parts = [row.get(one) for one in column]
        return None if any(part is None or part == "" for part in parts) else parts
    value = row.get(column)
    if isinstance(value, str):
        return parted(value, None, value) if value.startswith("[") else value if value.strip() else None
    return value


def listed(value: Any, separator: str | None) -> list[Any]:
    """A list, also from a CSV cell: as JSON, or split at ``separator`` (None: white space)."""
    if isinstance(value, str) and value.startswith("["):
        try:
            found = list(json.loads(value))
        except (ValueError, RecursionError):
            raise InputError(f"expected a JSON list, got {value!r:.60}") from None
        if "\\u" in value and not is_sound(found):
            raise InputError("half of a character: \\ud800 to \\udfff come in pairs")
        return found
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator)] if value.strip() else []
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def parted(value: Any, separator: str | None, otherwise: Any) -> Any:
    """``listed`` where the error can wait: it is told when the row is encoded and its line is known."""
    try:
        return listed(value, separator)
    except InputError:
        return otherwise


def choices_of(row: dict[str, Any], column: str | list[str]) -> list[Any]:
    return parted(row.get(column), "|", []) if isinstance(column, str) else [row.get(one) for one in column]


def number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def finite(value: Any) -> float:
    if (found := number(value)) is None:
        raise InputError(f"expected a number, got {value!r:.60}; if these are classes, type kind: classify")
    if not math.isfinite(found):
        raise InputError(f"expected a finite number, got {value!r}; leave the field empty where the label is missing")
    return found


def is_target(values: list[Any]) -> bool:
    """Numbers of which some are not whole. One value in twenty may be no number: it is told later, with its line."""
    numbers = [found for value in values if (found := number(value)) is not None]
    fractions = any(not math.isfinite(found) or found != int(found) for found in numbers)
    return fractions and len(numbers) >= 0.95 * len(values)


def name_of(value: Any) -> str:
    """A label's name: 1.0, which is what data frames make of 1, and 1 are the same."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def place(name: str, n: int) -> int | None:
    """A whole number below n from its digits; endless digits, which Python does not convert, are none."""
    return int(name) if name.isdecimal() and len(name) < 20 and int(name) < n else None


def infer_kind(values: list[Any], cols: dict[str, Any], table: Table, declared: bool, corpus: bool) -> str:
    """The kind, where neither the plan nor task.json says it. docs/data.md tells these rules in this order."""
    known = [value for value in values if value is not None]
    lists = [value for value in known if isinstance(value, list)]
    parts = [part for value in lists for part in value]
    numbers = {number(part) for part in parts}
    if corpus:
        return "retrieve"
    if cols["choices"]:
        rows = [(value, choices_of(row, cols["choices"])) for row, value in zip(table.rows, values, strict=True)]
        fitting = sum(value in choices or number(value) in range(len(choices)) for value, choices in rows)
        if 2 * fitting >= len(known):  # some may be wrong, to be told; all wrong is a column that only sounds alike
            return "choice"
    if isinstance(cols["label"], list):
        return "multilabel" if numbers <= {0, 1} else "regress"
    if cols["tokens"]:
        cells = [row.get(cols["tokens"]) for row in table.rows]
        pairs = [(len(parted(t, None, ())), len(parted(v, None, ()))) for t, v in zip(cells, values, strict=True) if v]
        if lists or all(tokens == tags for tokens, tags in pairs):
            return "tag"
    if lists:
        return "regress" if None not in numbers and any(isinstance(part, float) for part in parts) else "multilabel"
    if cols["text_b"]:
        return "pair"
    if declared:
        return "classify"
    if is_target(known) or len({number(value) for value in known} - {None}) > MANY:
        return "regress"
    return "generate" if len({str(value) for value in known}) > max(2 * MANY, len(known) / 2) else "classify"


class Space:
    """What the labels of a task may be. ``code(value, item)`` is the label of one row; ``item`` holds its other parts.

    declared: label names; without them the labels that occur are the space, sorted (by value if all are numbers).
    columns: the names of several label columns, or of the numbers in one, where there are such names."""

    def __init__(
        self,
        kind: str,
        declared: list[Any] | None,
        values: list[Any],
        corpus: Any,
        columns: list[str] | None,
        flags: bool,  # several columns, of 0 and 1 each for multilabel
    ):
        known = [value for value in values if value is not None]
        self.corpus, self.targets, self.flags = corpus, len(columns or ()), flags
        self.by_name = not declared or not all(isinstance(name, str) for name in declared)  # else whole numbers index
        self.names: list[str] | None = None
        if kind in ("classify", "multilabel", "tag") or (kind == "pair" and (declared or not is_target(known))):
            flat, separator = kind in ("classify", "pair"), None if kind == "tag" else "|"
            parts = [[value] if flat else parted(value, separator, ()) for value in known]
            cells = declared or [cell for part in parts for cell in part]
            plain = (cell for cell in cells if cell is not None and not isinstance(cell, (list, dict)))
            self.names = list(dict.fromkeys(map(name_of, plain)))
            if not declared:
                numeric = all(number(name) is not None for name in self.names)
                self.names.sort(key=lambda name: (number(name) if numeric else 0, name))
        self.index = {name: i for i, name in enumerate(self.names or ())}
        self.code: Callable[[Any, dict[str, Any]], Any] = getattr(self, kind)

    def one(self, value: Any) -> int:
        """The index of one label."""
        if type(value) is int and not self.by_name and 0 <= value < len(self.index):
            return value  # the common case first: half a million tags go through here
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"label is {value}; leave the field empty where the label is missing")
        if isinstance(value, (list, dict)) or value is None:
            raise InputError(f"expected one label, got {value!r:.60}")
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value)
        name, n = name_of(value), len(self.index)
        if name in self.index and (self.by_name or not whole):
            return self.index[name]
        if not self.by_name and (index := place(name, n)) is not None:
            return index
        space = f"the {n} declared labels{'' if self.by_name else f' or their indices 0 to {n - 1}'}"
        raise InputError(f"{name!r:.60} is not one of {space}{nearest(name, self.index)}")

    def classify(self, value: Any, item: dict[str, Any]) -> int:
        return self.one(value)

    def multilabel(self, value: Any, item: dict[str, Any]) -> list[int]:
        if not self.flags:
            return sorted({self.one(part) for part in listed(value, "|")})
        flags = [number(part) for part in value]
        if not set(flags) <= {0, 1}:
            raise InputError(f"expected 0 or 1 in each label column, got {', '.join(map(str, value))}")
        return [index for index, flag in enumerate(flags) if flag]

    def regress(self, value: Any, item: dict[str, Any]) -> list[float] | None:
        parts = value if isinstance(value, list) else [value]
        self.targets = self.targets or len(parts)
        if len(parts) != self.targets:
            raise InputError(f"expected {self.targets} targets, got {len(parts)}")
        return None if None in parts else [finite(part) for part in parts]

    def tag(self, value: Any, item: dict[str, Any]) -> list[int]:
        parts, tokens = listed(value, None), item["tokens"]
        if len(parts) != len(tokens):
            raise InputError(f"{len(parts)} tags for {len(tokens)} tokens; expected one tag a token")
        return [self.one(part) for part in parts]

    def pair(self, value: Any, item: dict[str, Any]) -> int | list[float]:
        return [finite(value)] if self.names is None else self.one(value)

    def choice(self, value: Any, item: dict[str, Any]) -> int:
        choices = item["choices"]
        if isinstance(value, str) and choices.count(value) == 1:
            return int(choices.index(value))
        if (index := place(name_of(value), len(choices))) is None:
            raise InputError(f"expected the text of a choice or its index, 0 to {len(choices) - 1}, got {value!r:.60}")
        return index

    def retrieve(self, value: Any, item: dict[str, Any]) -> list[str] | None:
        ids = [str(part) for part in listed(value, "|")]
        for name in ids:
            if name not in self.corpus:
                raise InputError(f"the corpus has {len(self.corpus)} documents, none of id {name!r:.60}")
        return ids or None

    def generate(self, value: Any, item: dict[str, Any]) -> str:
        return text_of(value)


def encode(
    table: Table, values: list[Any], cols: dict[str, Any], kind: str, space: Space, report: Report
) -> tuple[Rows, list[int]]:
    """A table as Rows, and which of its rows they are; a row that is wrong goes to ``report``."""
    has = {"text_b": cols["text_b"], "tokens": kind == "tag", "choices": kind == "choice", "text": True, "label": True}
    kept: dict[str, Any] = {role: [] if used else None for role, used in has.items()}
    ids: list[int] = []
    for i, (row, value) in enumerate(zip(table.rows, values, strict=True)):
        item: dict[str, Any] = {}
        role = "text"
        try:
            item["text"] = text_of(row.get(cols["text"]))
            if has[role := "text_b"]:
                item[role] = text_of(row.get(cols[role]))
            if has[role := "tokens"]:
                cell = row.get(cols[role]) if cols[role] else item["text"]
                item[role] = [text_of(token) for token in listed(cell, None)]
                item["text"] = item["text"] if cols["text"] else " ".join(item[role])
            if has[role := "choices"]:
                item[role] = [text_of(cell) for cell in choices_of(row, cols[role])]
                if len(item[role]) < 2:
                    raise InputError(f"expected two choices or more, got {len(item[role])}")
            role = "label"
            item[role] = None if value is None else space.code(value, item)
        except InputError as error:
            report(table.error(i, str(error), ", ".join(several(cols[role])) or None))
        else:
            for role, part in item.items():
                kept[role].append(part)
            ids.append(i)
    return Rows(**kept), ids
