"""What a task is before any model sees it: its kind, its label space, its rows in three splits, what is odd about them.

The plan wins over task.json, task.json over inference; docs/data.md documents keys, layout and the rules of inference.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from anabranch.errors import InputError, WorkError, nearest
from anabranch.task.plan import Plan, TaskSpec, data_files, explain, kind_of, read_plan
from anabranch.task.read import SPLITS, PlacedError, Report, Table, is_hub_id, is_saved, read_hub, read_saved, read_table
from anabranch.task.read import read_text, shown, stop

LONG = 100_000  # characters from which on a text is counted as long; the tokenizer truncates it
MANY = 20  # more different whole numbers than this are a target, not class names
NAMES = {  # columns that are taken when the plan names none; the first one of a row wins over the others
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


@dataclass(frozen=True)
class Rows:
    """n rows as columns. A label is None where it is missing, else by kind: classify, choice and pair of classes an index;
    multilabel sorted indices; tag one index a token; regress, and pair of a number, a list of floats; retrieve corpus ids;
    generate text."""

    text: list[str]
    text_b: list[str] | None
    tokens: list[list[str]] | None
    choices: list[list[str]] | None
    label: list[Any]

    def __len__(self) -> int:
        return len(self.text)

    def take(self, ids: Iterable[int]) -> "Rows":
        chosen = list(ids)
        return Rows(**{name: None if column is None else [column[i] for i in chosen] for name, column in vars(self).items()})


@dataclass(frozen=True)
class Task:
    """A task ready to be learned. ``metric`` None: the kind's default. ``valid`` and ``test`` hold labelled rows only.

    counts: train, valid, test (rows), missing, empty, long, duplicates, conflicts, leaks, skipped (rows of the files) and
    unseen (labels that only test has)."""

    name: str
    kind: str
    labels: list[str] | None
    metric: str | None
    train: Rows
    valid: Rows
    test: Rows
    corpus: dict[str, str] | None
    max_length: int | None
    weight: float
    description: str
    targets: list[str] | None
    warnings: list[str]
    counts: dict[str, int]


def load_task(name: str, spec: TaskSpec, *, seed: int = 0, strict: bool = False, on_error: str = "stop") -> Task:
    """Read one task. Raises InputError, mostly a PlacedError with file, line and column, that begins with the task's name;
    with ``on_error="skip"`` a row that is wrong is left out and counted instead."""
    if on_error not in ("stop", "skip"):
        raise InputError(f"on_error is stop or skip, got {on_error!r}")
    wrong: list[PlacedError] = []
    try:
        task = load(name, spec, seed, strict, stop if on_error == "stop" else wrong.append)
    except (InputError, WorkError) as error:
        error.args = (f"task {name}: {error}",)
        raise
    noted = [f"{len(wrong)} wrong rows skipped (first: {wrong[0]})"] if wrong else []
    return replace(task, warnings=noted + task.warnings, counts=task.counts | {"skipped": len(wrong)})


def check_data(plan: Path | str | dict[str, Any] | Plan, shown_problems: int = 100) -> dict[str, Any]:
    """``data check``: every task is read, nothing is raised. ``{"ok", "problems": n, "plan": [...], "tasks": {name: {"kind",
    "labels", "rows", "missing", "empty", "long", "duplicates", "conflicts", "leaks", "unseen", "warnings", "problems"}}}``
    where a problem is ``{"file", "line", "column", "message"}``; of one task ``shown_problems`` are listed."""

    def words(error: Exception) -> dict[str, Any]:
        place = {key: getattr(error, key, None) for key in ("file", "line", "column")}
        return place | {"message": getattr(error, "message", str(error))}

    report: dict[str, Any] = {"ok": True, "problems": 0, "plan": [], "tasks": {}}
    try:
        specs = read_plan(plan)
    except (InputError, WorkError) as error:
        return report | {"ok": False, "problems": 1, "plan": [words(error)]}
    for name, spec in specs.tasks.items():
        wrong: list[Exception] = []
        entry: dict[str, Any] = {"kind": spec.kind, "labels": None, "rows": None, "warnings": []}
        try:
            task = load(name, spec, specs.seed, specs.strict, wrong.append)
            counts = dict(task.counts)
            entry |= {"kind": task.kind, "labels": len(task.labels or ()), "rows": {s: counts.pop(s) for s in SPLITS}}
            entry |= counts | {"warnings": task.warnings}
        except (InputError, WorkError) as error:
            wrong.append(error)
        report["tasks"][name] = entry | {"problems": [words(error) for error in wrong[:shown_problems]]}
        report["problems"] += len(wrong)
    return report | {"ok": not report["problems"]}


def load(name: str, spec: TaskSpec, seed: int, strict: bool, report: Report) -> Task:
    spec, meta, tables = sources(spec, report)
    train = tables["train"]
    kind = spec.kind and ("multilabel" if spec.kind == "classify" and meta.get("multilabel") else spec.kind)
    cols = columns(spec, kind, train)
    for table in tables.values():
        for key, column in cols.items():
            for one in column if isinstance(column, list) else [column] * (column is not None):
                if one not in table.columns:
                    raise table.head(f"no such column for the {key}{nearest(one, table.columns)}", one)
    corpus = read_corpus(Path(spec.corpus), report) if spec.corpus else None
    declared = spec.labels or (isinstance(cols["label"], str) and train.labels.get(cols["label"])) or None
    values = {split: [label_of(row, cols["label"]) for row in table.rows] for split, table in tables.items()}
    kind = kind or infer_kind(values["train"], cols, train, declared, corpus)
    kind = "pair" if kind == "classify" and cols["text_b"] else kind
    for key, kinds in (("text_b", ("pair",)), ("choices", ("choice",))):
        if kind in kinds and not cols[key]:
            raise train.head(f"{kind} needs {key}: COLUMN; columns are {', '.join(train.columns)}")
    if kind == "retrieve" and corpus is None:
        raise train.head("retrieve needs a corpus.jsonl beside it, or corpus: FILE, of lines {\"id\": ..., \"text\": ...}")
    targets = cols["label"] if isinstance(cols["label"], list) else meta.get("targets")
    if isinstance(cols["label"], list) and kind == "multilabel":
        declared, targets, values = list(cols["label"]), None, {s: indicators(v, cols["label"]) for s, v in values.items()}
    space = Space(kind, declared, values, corpus, len(targets) if targets else None)

    pools, odd = {}, Oddities()
    for split, table in tables.items():
        pools[split], ids = encode(table, values[split], cols, space, report)
        odd.look(split, pools[split], table, ids)
    if space.names is not None:
        two_classes(pools["train"], kind, space.names, train)
    rows, notes = split_rows(name, kind, pools, spec, seed, train)
    odd.notes += notes
    unseen = sorted(
        set().union(*map(classes, rows["test"].label)) - set().union(*map(classes, rows["train"].label + rows["valid"].label))
        if space.names else ()
    )  # fmt: skip
    if unseen:
        listed = ", ".join(repr(space.names[i]) for i in unseen[:5]) + ", ..." * (len(unseen) > 5)
        if strict:
            fix = "add training rows for it, drop its test rows, or leave strict out"
            raise PlacedError(f"label seen only in test: {listed}; {fix}", tables.get("test", train).source)
        odd.notes.append(f"{len(unseen)} labels seen only in test: {listed}")
    counts = {split: len(part) for split, part in rows.items()} | odd.counts | {"unseen": len(unseen)}
    return Task(
        name, kind, space.names, spec.metric, rows["train"], rows["valid"], rows["test"], corpus, spec.max_length,
        spec.weight or 1.0, spec.description or "", targets, odd.warnings(), counts | {"skipped": 0},
    )  # fmt: skip


# ---- where the rows are -------------------------------------------------------------------------------------------------


def sources(spec: TaskSpec, report: Report) -> tuple[TaskSpec, dict[str, Any], dict[str, Table]]:
    """The spec completed by task.json, task.json itself, and one table a split."""
    meta: dict[str, Any] = {}
    tables: dict[str, Table] = {}
    files: dict[str, Path] = {}
    path = Path(spec.data or ".")
    if spec.data and is_saved(path):
        tables = read_saved(path)
    elif spec.data and path.is_dir():
        meta = read_meta(path)
        told = spec_of(meta, path)
        files = {split: Path(file) for split in SPLITS if (file := getattr(told, split) or only(path, split))}
        corpus = only(path, "corpus")
        spec = TaskSpec(**{"corpus": corpus} | told.model_dump(exclude_none=True) | spec.model_dump(exclude_none=True))
        if "train" not in files and not spec.train:
            found = ", ".join(sorted(child.name for child in path.iterdir())[:12]) or "nothing"
            raise PlacedError(f"expected train.jsonl, train.csv or another train file, found {found}", shown(path))
    elif spec.data and is_hub_id(spec.data, Path.cwd()):
        tables = read_hub(spec.data)
    elif spec.data:
        files = {"train": path}
    files |= {split: Path(file) for split in SPLITS if (file := getattr(spec, split))}
    tables |= {split: read_table(file, report) for split, file in files.items()}
    return spec, meta, by_column(tables, spec.split, report) if isinstance(spec.split, str) else tables


def only(folder: Path, split: str) -> str | None:
    files = data_files(folder, split)
    if len(files) > 1:
        raise PlacedError(f"{' and '.join(f.name for f in files)} are both there: keep one", shown(folder))
    return str(files[0]) if files else None


def read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "task.json"
    if not path.exists():
        return {}
    try:
        meta = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise PlacedError(f"broken JSON: {error.msg}", shown(path), error.lineno, error.colno) from None
    if not isinstance(meta, dict):
        raise PlacedError('expected an object such as {"kind": "classify", "labels": [...]}', shown(path), 1)
    return meta


def spec_of(meta: dict[str, Any], folder: Path) -> TaskSpec:
    """The keys of a plan that task.json gives; others (licence, citation ...) are the reader's own. Its files stay inside
    its folder: a task folder that came from elsewhere must not make us read what lies beside it."""
    keys = {key: value for key, value in meta.items() if key in TaskSpec.model_fields and value is not None}
    if not isinstance(keys.get("split"), dict):
        keys.pop("split", None)  # often a sentence on how the split was made
    try:
        spec = TaskSpec.model_validate(keys | {"data": str(folder)})
    except ValidationError as error:
        raise explain(error, keys, TaskSpec, shown(folder / "task.json"), {}) from None
    for key in (*SPLITS, "corpus"):
        if word := getattr(spec, key):
            if not (folder / word).resolve().is_relative_to(folder.resolve()):
                raise PlacedError(f"{key} leaves the task folder: {word!r}", shown(folder / "task.json"))
            setattr(spec, key, str(folder / word))
    return spec


def by_column(tables: dict[str, Table], column: str, report: Report) -> dict[str, Table]:
    """One table with a column of split names as up to three tables."""
    table = tables["train"]
    if len(tables) > 1:
        raise table.head(f"split: {column} is for one table, here are {', '.join(tables)}: give shares {{test: 0.2}}")
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


def read_corpus(path: Path, report: Report) -> dict[str, str]:
    table = read_table(path, report)
    key, text, corpus = pick("id", None, table, ()), pick("text", None, table, ()), {}
    if key is None or text is None:
        raise table.head(f"a corpus has the columns id and text, got {', '.join(table.columns)}")
    for i, row in enumerate(table.rows):
        name = str(row.get(key, ""))
        if not name or name in corpus:
            report(table.error(i, f"the id {name!r} is there twice" if name else "a document without an id", key))
        else:
            corpus[name] = text_of(row.get(text))
    return corpus


def pick(role: str, named: str | None, table: Table, taken: Iterable[str]) -> str | None:
    """The column of a role: as named, or the usual name, or the only one of the usual aliases."""
    if named is not None:
        return named
    found = [column for column in NAMES[role] if column in table.columns and column not in taken]
    if len(found) > 1 and found[0] != NAMES[role][0]:
        raise table.head(f"which column is the {role}? {', '.join(found)} could be: type {role}: {found[0]}")
    return found[0] if found else None


def columns(spec: TaskSpec, kind: str | None, table: Table) -> dict[str, Any]:
    """{role: column, list of columns, or None}. A role that the kind has no use for is looked for only where named."""
    idle = {"tokens": kind not in (None, "tag"), "choices": kind not in (None, "choice")}
    idle["text_b"] = kind in ("classify", "multilabel")
    named = {role: getattr(spec, role) for role in ("text", "text_b", "tokens", "choices", "label")}
    taken = [one for column in named.values() if column for one in ([column] if isinstance(column, str) else column)]
    cols = {r: column if column or idle.get(r) else pick(r, None, table, taken) for r, column in named.items()}
    listed = f"columns are {', '.join(table.columns)}"
    if not cols["text"] and not cols["tokens"]:
        raise table.head(f"no column is called text: type text: COLUMN; {listed}")
    if not cols["label"]:
        raise table.head(f"no column is called label: type label: COLUMN; {listed}")
    return cols


# ---- kind and labels ----------------------------------------------------------------------------------------------------


def label_of(row: dict[str, Any], column: str | list[str]) -> Any:
    """The raw label: None where missing; a list for several columns and for a cell that is a JSON list."""
    if isinstance(column, list):
        value = [row.get(one) for one in column]
        return None if any(part is None or part == "" for part in value) else value
    value = row.get(column)
    if isinstance(value, str):
        if value.startswith("[") and value.endswith("]"):
            try:
                return json.loads(value)
            except ValueError:
                return value
        return value if value.strip() else None
    return value


def listed(value: Any, separator: str | None) -> list[Any] | None:
    """A list, also from a CSV cell: as JSON, or split at ``separator`` (None: white space)."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, (list, tuple)) else None if value is None else [value]
    if value.startswith("["):
        try:
            found = json.loads(value)
        except ValueError:
            raise InputError(f"expected a JSON list, got {value!r:.60}") from None
        return list(found)
    return [part.strip() for part in value.split(separator)] if value.strip() else None


def number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def finite(value: Any) -> float:
    if (found := number(value)) is None:
        raise InputError(f"expected a number, got {value!r:.60}; if these are classes type kind: classify")
    if not math.isfinite(found):
        raise InputError(f"expected a finite number, got {value!r}; leave the field empty where the label is missing")
    return found


def infer_kind(
    values: list[Any], cols: dict[str, Any], table: Table, declared: list[Any] | None, corpus: dict[str, str] | None
) -> str:
    """The kind, when neither plan nor task.json says it; the rules are told in docs/data.md."""
    known = [value for value in values if value is not None]
    if corpus is not None or cols["choices"]:
        return "retrieve" if corpus is not None else "choice"
    if isinstance(cols["label"], list):
        return "multilabel" if {number(part) for value in known for part in value} <= {0, 1} else "regress"
    if cols["tokens"]:
        rows = [(row.get(cols["tokens"]), value) for row, value in zip(table.rows, values, strict=True) if value is not None]
        if rows and all(len(listed(t, None) or []) == len(listed(v, None) or []) for t, v in rows):
            return "tag"
    if any(isinstance(value, list) for value in known):
        parts = [part for value in known if isinstance(value, list) for part in value]
        if any(isinstance(part, float) for part in parts) and all(number(part) is not None for part in parts):
            return "regress"
        return "tag" if cols["tokens"] else "multilabel"
    if declared:
        return "pair" if cols["text_b"] else "classify"
    if cols["text_b"]:
        return "pair"
    if is_target(known) or len({found for value in known if (found := number(value)) is not None}) > MANY:
        return "regress"
    names = {str(value) for value in known}
    return "generate" if len(names) > max(2 * MANY, len(known) / 2) else "classify"


def is_target(values: list[Any]) -> bool:
    """Numbers (a few wrong ones aside: they are reported later, with their lines) of which some are not whole."""
    numbers = [found for value in values if (found := number(value)) is not None]
    fractions = any(not math.isfinite(found) or found != int(found) for found in numbers)
    return fractions and len(numbers) >= 0.95 * len(values)


def name_of(value: Any) -> str:
    """A label's name: 1.0, which is what spreadsheets make of 1, and 1 are the same."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def indicators(values: list[Any], names: list[str]) -> list[Any]:
    """Several columns of 0 and 1 as lists of the names that are 1."""
    return [
        value if value is None or not {number(part) for part in value} <= {0, 1}
        else [name for name, part in zip(names, value, strict=True) if number(part)]
        for value in values
    ]  # fmt: skip


class Space:
    """What a label may be, and how it is written down: ``code(value, tokens, choices)`` gives the label of a row."""

    def __init__(
        self, kind: str, declared: list[Any] | None, values: dict[str, list[Any]], corpus: Any, targets: int | None
    ):
        known = [value for part in values.values() for value in part if value is not None]
        self.kind, self.corpus, self.targets, self.names = kind, corpus, targets, None
        self.by_name = not declared or any(not isinstance(name, str) for name in declared)  # else a whole number is an index
        self.separator = None if kind == "tag" else "|"
        if kind in ("classify", "multilabel", "tag") or (kind == "pair" and (declared or not is_target(known))):
            self.names = [name_of(name) for name in declared] if declared else self.seen(known)
        self.index = {name: i for i, name in enumerate(self.names or ())}
        self.code: Callable[[Any, Any, Any], Any] = getattr(self, kind)

    def seen(self, values: list[Any]) -> list[str]:
        names: set[str] = set()
        for value in values:
            parts = [value] if self.kind in ("classify", "pair") else parted(value, self.separator)
            names.update(name_of(part) for part in parts if not isinstance(part, (list, dict)) and part is not None)
        numeric = all(number(name) is not None for name in names)
        return sorted(names, key=lambda name: (number(name), name)) if numeric else sorted(names)

    def one(self, value: Any) -> int:
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"label is {value}; leave the field empty where the label is missing")
        if isinstance(value, (list, dict)) or value is None:
            raise InputError(f"expected one label, got {json.dumps(value):.60}")
        whole = isinstance(value, (int, float)) and not isinstance(value, bool)
        name, n = name_of(value), len(self.index)
        if name in self.index and (self.by_name or not whole):
            return self.index[name]
        if not self.by_name and name.isdecimal() and int(name) < n:
            return int(name)
        space = f"the {n} labels (index 0 to {n - 1})" if whole and not self.by_name else f"the {n} labels"
        raise InputError(f"label {name!r:.60} is not one of {space}{nearest(name, self.index)}")

    def several(self, value: Any) -> list[Any]:
        return listed(value, self.separator) or []

    def classify(self, value: Any, tokens: Any, choices: Any) -> int:
        return self.one(value)

    def multilabel(self, value: Any, tokens: Any, choices: Any) -> list[int]:
        return sorted({self.one(part) for part in self.several(value)})

    def regress(self, value: Any, tokens: Any, choices: Any) -> list[float]:
        found = [finite(part) for part in (value if isinstance(value, list) else [value])]
        self.targets = self.targets or len(found)
        if len(found) != self.targets:
            raise InputError(f"expected {self.targets} targets, got {len(found)}")
        return found

    def tag(self, value: Any, tokens: Any, choices: Any) -> list[int]:
        parts = self.several(value)
        if len(parts) != len(tokens):
            raise InputError(f"{len(parts)} tags for {len(tokens)} tokens; expected one tag a token")
        return [self.one(part) for part in parts]

    def pair(self, value: Any, tokens: Any, choices: Any) -> int | list[float]:
        return self.one(value) if self.names is not None else [finite(value)]

    def choice(self, value: Any, tokens: Any, choices: Any) -> int:
        if isinstance(value, str) and choices.count(value) == 1:
            return int(choices.index(value))
        name = name_of(value)
        if not name.isdecimal() or int(name) >= len(choices):
            raise InputError(f"expected a choice's text or its index, 0 to {len(choices) - 1}, got {value!r:.60}")
        return int(name)

    def retrieve(self, value: Any, tokens: Any, choices: Any) -> list[str]:
        ids = [str(part) for part in self.several(value)]
        for name in ids:
            if name not in self.corpus:
                raise InputError(f"the corpus of {len(self.corpus)} documents has no id {name!r:.60}")
        return ids

    def generate(self, value: Any, tokens: Any, choices: Any) -> str:
        return text_of(value)


def parted(value: Any, separator: str | None) -> list[Any]:
    try:
        return listed(value, separator) or []
    except InputError:
        return []  # said later, when the row is encoded and its line is known


def text_of(value: Any) -> str:
    if isinstance(value, (list, dict)):
        raise InputError(f"expected text, got {json.dumps(value):.60}")
    text = "" if value is None else str(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"half of a character (a lone surrogate) at position {error.start}") from None
    return text


def encode(
    table: Table, values: list[Any], cols: dict[str, Any], space: Space, report: Report
) -> tuple[Rows, list[int]]:
    """A table as Rows, and which of its rows they are; a row that is wrong goes to ``report``."""
    kept: dict[str, list[Any]] = {"text": [], "text_b": [], "tokens": [], "choices": [], "label": []}
    used = {"text", "label", *(["text_b"] if cols["text_b"] else []), *{"tag": ["tokens"], "choice": ["choices"]}.get(space.kind, [])}
    ids: list[int] = []
    for i, (row, value) in enumerate(zip(table.rows, values, strict=True)):
        item: dict[str, Any] = {}
        role = "text"
        try:
            item["text"] = text_of(row.get(cols["text"]))
            for role in ("text_b", "tokens", "choices"):
                if role in used:
                    item[role] = PARTS[role](row, cols, item["text"])
            if "tokens" in used and not cols["text"]:
                item["text"] = " ".join(item["tokens"])
            role = "label"
            item["label"] = None if value is None else space.code(value, item.get("tokens"), item.get("choices"))
        except InputError as error:
            column = cols[role]
            report(table.error(i, str(error), ", ".join(column) if isinstance(column, list) else column))
        else:
            for role, part in item.items():
                kept[role].append(part)
            ids.append(i)
    return Rows(**{role: part if role in used else None for role, part in kept.items()}), ids  # type: ignore[arg-type]


def two_texts(row: dict[str, Any], cols: dict[str, Any], text: str) -> str:
    return text_of(row.get(cols["text_b"]))


def tokens_of(row: dict[str, Any], cols: dict[str, Any], text: str) -> list[str]:
    cell = row.get(cols["tokens"]) if cols["tokens"] else text
    return [text_of(token) for token in listed(cell, None) or []]


def choices_of(row: dict[str, Any], cols: dict[str, Any], text: str) -> list[str]:
    column = cols["choices"]
    cells = [row.get(one) for one in column] if isinstance(column, list) else listed(row.get(column), "|") or []
    if len(cells) < 2:
        raise InputError(f"expected two choices or more, got {len(cells)}")
    return [text_of(cell) for cell in cells]
