"""Where a task's rows are: its files, its task.json, its corpus, and which column plays which role."""

import json
from collections.abc import Iterable
from os.path import exists, isdir  # which say no to a name that is too long, where a Path raises OSError
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from anabranch.errors import InputError, nearest
from anabranch.task.plan import TaskSpec, explain
from anabranch.task.read import (
    SPLITS,
    PlacedError,
    Report,
    Table,
    data_files,
    is_hub_id,
    is_saved,
    is_sound,
    read_hub,
    read_saved,
    read_table,
    read_text,
    shown,
)

NAMES = {  # columns that are taken when none is named; the first of a row wins over the others, which must not meet
    "text": (
        "text", "sentence", "sentence1", "question", "question1", "premise", "query", "utterance", "review", "comment",
        "message", "tweet", "content", "body", "document", "title", "input", "prompt",
    ),
    "text_b": ("text_b", "sentence2", "question2", "hypothesis"),
    "tokens": ("tokens", "words"),
    "choices": ("choices", "options", "endings"),
    "label": (
        "label", "labels", "target", "targets", "class", "category", "intent", "topic", "sentiment", "tag", "tags",
        "ner_tags", "pos_tags", "score", "rating", "stars", "answer", "answers", "output", "summary",
    ),
    "id": ("id", "_id", "doc_id", "docid"),
}  # fmt: skip


def sources(spec: TaskSpec, report: Report) -> tuple[TaskSpec, dict[str, Any], dict[str, Table]]:
    """The spec completed by task.json, task.json itself, and one table a split (train is always there)."""
    meta: dict[str, Any] = {}
    tables: dict[str, Table] = {}
    files: dict[str, str] = {}
    path = Path(spec.data or "")
    if spec.data and is_saved(path):
        tables = read_saved(path)
    elif spec.data and isdir(path):
        meta = read_meta(path)
        told = spec_of(meta, path)
        found = {key: file for key in (*SPLITS, "corpus") if (file := getattr(told, key) or only(path, key))}
        merged = found | told.model_dump(exclude_none=True) | spec.model_dump(exclude_none=True)
        spec = TaskSpec.model_validate(merged)
        if not spec.train:
            there = ", ".join(sorted(child.name for child in path.iterdir())[:12]) or "nothing"
            raise PlacedError(f"expected train.jsonl, train.csv or another train file, found {there}", shown(path))
    elif spec.data and is_hub_id(spec.data, Path.cwd()):
        tables = read_hub(spec.data)
    elif spec.data:
        files = {"train": spec.data}
    files |= {split: file for split in SPLITS if (file := getattr(spec, split))}
    tables |= {split: read_table(Path(file), report) for split, file in files.items()}
    return spec, meta, by_column(tables, spec.split, report) if isinstance(spec.split, str) else tables


def only(folder: Path, name: str) -> str | None:
    files = data_files(folder, name)
    if len(files) > 1:
        raise PlacedError(f"{' and '.join(file.name for file in files)} are both there: keep one", shown(folder))
    return str(files[0]) if files else None


def read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "task.json"
    if not exists(path):
        return {}
    try:
        meta = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise PlacedError(f"broken JSON: {error.msg}", shown(path), error.lineno, error.colno) from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists in lists in lists
        raise PlacedError(f"broken JSON: {error}", shown(path)) from None
    if not isinstance(meta, dict) or not is_sound(meta):
        raise PlacedError('expected an object such as {"kind": "classify", "labels": [...]}', shown(path), 1)
    if meta.get("targets") is not None and not isinstance(meta["targets"], list):
        raise PlacedError(f"targets is a list of names, got {meta['targets']!r:.60}", shown(path))
    return meta


def spec_of(meta: dict[str, Any], folder: Path) -> TaskSpec:
    """The keys of a plan that task.json gives; the others (licence, citation ...) are for readers. Its files stay in
    its folder: a task folder from elsewhere must not make us read what lies beside it."""
    file = shown(folder / "task.json")
    keys = {key: value for key, value in meta.items() if key in TaskSpec.model_fields and value is not None}
    if not isinstance(keys.get("split"), dict):
        keys.pop("split", None)  # often a sentence on how the split was made
    try:
        spec = TaskSpec.model_validate(keys | {"data": str(folder)})
    except ValidationError as error:
        raise explain(error, keys, TaskSpec, file, {}) from None
    for key in (*SPLITS, "corpus"):
        if word := getattr(spec, key):
            if not (folder / word).resolve().is_relative_to(folder.resolve()):
                raise PlacedError(f"{key} leaves the task folder: {word!r}; copy the file into it", file)
            setattr(spec, key, str(folder / word))
    return spec


def by_column(tables: dict[str, Table], column: str, report: Report) -> dict[str, Table]:
    """One table with a column of split names, as up to three tables."""
    table = tables["train"]
    if len(tables) > 1:
        raise table.head(f"split: {column} is for one table, here are {', '.join(tables)}: leave split out")
    if column not in table.columns:
        raise table.head(f"no such column for the split{nearest(column, table.columns)}", column)
    names = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
    ids: dict[str, list[int]] = {}
    for i, row in enumerate(table.rows):
        if split := names.get(str(row.get(column)).strip().lower()):
            ids.setdefault(split, []).append(i)
        else:
            report(table.error(i, f"expected train, valid or test, got {row.get(column)!r}", column))
    if "train" not in ids:
        raise table.head("no row is marked train", column)
    return {split: table.take(ids[split]) for split in SPLITS if split in ids}


def read_corpus(file: str, report: Report) -> dict[str, str]:
    """``{id: text}`` of the documents of a retrieve task."""
    table = read_table(Path(file), report)
    key, text = pick("id", table), pick("text", table)
    if key is None or text is None:
        raise table.head(f"a corpus has the columns id and text, got {', '.join(table.columns)}")
    corpus: dict[str, str] = {}
    for i, row in enumerate(table.rows):
        name = "" if row.get(key) is None else str(row[key])
        if not name or name in corpus:
            report(table.error(i, f"the id {name!r} is there twice" if name else "a document without an id", key))
            continue
        try:
            corpus[name] = text_of(row.get(text))
        except InputError as error:
            report(table.error(i, str(error), text))
    return corpus


def text_of(value: Any) -> str:
    """A cell as text; missing is empty."""
    if isinstance(value, (list, dict, bytes)):
        raise InputError(f"expected text, got {value!r:.60}")
    return value if isinstance(value, str) else "" if value is None else str(value)


def pick(role: str, table: Table, taken: Iterable[str] = ()) -> str | None:
    """The column of a role by its usual name, or the only one of the usual aliases."""
    free = [column for column in table.columns if column not in taken]
    found = [column for name in NAMES[role] for column in free if column.lower() == name]
    if len(found) > 1 and found[0].lower() != NAMES[role][0]:
        raise table.head(f"{', '.join(found)} could each be the {role}: type {role}: {found[0]}, for example")
    return found[0] if found else None


def columns(spec: TaskSpec, kind: str | None, tables: dict[str, Table]) -> dict[str, Any]:
    """{role: column, list of columns, or None}. A role that the kind has no use for is looked for only where named."""
    table = tables["train"]
    idle = {"tokens": kind not in (None, "tag"), "choices": kind not in (None, "choice")}
    idle["text_b"] = kind in ("classify", "multilabel")
    named = {role: getattr(spec, role) for role in ("text", "text_b", "tokens", "choices", "label")}
    taken = [one for column in named.values() for one in several(column)]
    for role, one in [(role, one) for role, column in named.items() for one in several(column)]:
        check_column(role, one, table)
    cols = {r: column if column or idle.get(r) else pick(r, table, taken) for r, column in named.items()}
    there = f"columns are {', '.join(table.columns)}"
    if not cols["text"] and not cols["tokens"]:
        raise table.head(f"which column is the text? type text: COLUMN; {there}")
    if not cols["label"]:
        raise table.head(f"which column is the label? type label: COLUMN; {there}")
    for other in tables.values():
        for role, one in [(role, one) for role, column in cols.items() for one in several(column)]:
            check_column(role, one, other)
    return cols


def several(column: str | list[str] | None) -> list[str]:
    return [column] if isinstance(column, str) else column or []


def check_column(role: str, column: str, table: Table) -> None:
    if column not in table.columns:
        raise table.head(f"no such column for the {role}{nearest(column, table.columns)}", column)
