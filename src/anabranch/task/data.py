"""What a task is before a model sees it: its kind, its labels, its rows in three splits, what is odd about them.

The plan wins over task.json, task.json over inference; docs/data.md documents layout, keys and the rules of inference.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from anabranch.errors import InputError, WorkError
from anabranch.task.label import Rows, Space, encode, infer_kind, label_of
from anabranch.task.plan import Plan, TaskSpec, read_plan
from anabranch.task.read import SPLITS, PlacedError, Report, Table, stop
from anabranch.task.source import columns, read_corpus, sources
from anabranch.task.split import classes, hold_out, limited, oddities

__all__ = ["Rows", "Task", "check_data", "load_task"]


@dataclass(frozen=True)
class Task:
    """A task ready to be learned; valid and test hold labelled rows only.

    labels: names in the order of their indices, None for kinds without classes. metric: None is the kind's default.
    targets: names of the numbers of a regress label. counts: train, valid, test (rows); of the files: missing, empty,
    long, duplicates, conflicts, leaks, skipped (rows); unseen (labels that only test has)."""

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


def load_task(
    name: str, spec: TaskSpec, *, seed: int = 0, strict: bool = False, on_error: Literal["stop", "skip"] = "stop"
) -> Task:
    """Read one task. Raises InputError that begins with the task's name, mostly a PlacedError with file, line and
    column; with ``on_error="skip"`` a wrong row is left out and counted instead."""
    wrong: list[PlacedError] = []
    if on_error not in ("stop", "skip"):
        raise InputError(f"on_error is stop or skip, got {on_error!r}")
    try:
        task = load(name, spec, seed, strict, stop if on_error == "stop" else wrong.append)
    except (InputError, WorkError) as error:
        error.args = (f"task {name}: {error}",)
        raise
    skipped = [f"wrong rows, skipped: {len(wrong)} (first: {wrong[0]})"] if wrong else []
    return replace(task, warnings=skipped + task.warnings, counts=task.counts | {"skipped": len(wrong)})


def check_data(plan: Path | str | dict[str, Any] | Plan, most: int = 100) -> dict[str, Any]:
    """``data check``: reads every task, raises nothing. ``{"ok", "problems": n, "plan": [problem], "tasks": {name:
    {"kind", "labels": n, "rows": {split: n}, "missing", "empty", "long", "duplicates", "conflicts", "leaks", "unseen",
    "warnings": [text], "problems": [problem]}}}``; a problem is ``{"file", "line", "column", "message"}``, of which at
    most ``most`` are listed a task. Of a task that cannot be read there are kind, warnings and problems only."""

    def told(error: Exception) -> dict[str, Any]:
        place = {key: getattr(error, key, None) for key in ("file", "line", "column")}
        return place | {"message": getattr(error, "message", str(error))}

    result: dict[str, Any] = {"ok": True, "problems": 0, "plan": [], "tasks": {}}
    try:
        specs = read_plan(plan)
    except (InputError, WorkError) as error:
        return result | {"ok": False, "problems": 1, "plan": [told(error)]}
    for name, spec in specs.tasks.items():
        wrong: list[Exception] = []
        entry: dict[str, Any] = {"kind": spec.kind, "labels": None, "rows": None, "warnings": []}
        try:
            task = load(name, spec, specs.seed, specs.strict, wrong.append)
            counts = dict(task.counts)
            entry |= {"kind": task.kind, "labels": task.labels and len(task.labels)}
            entry |= {"rows": {split: counts.pop(split) for split in SPLITS}} | counts | {"warnings": task.warnings}
        except (InputError, WorkError) as error:
            wrong.append(error)
        result["tasks"][name] = entry | {"problems": [told(error) for error in wrong[:most]]}
        result["problems"] += len(wrong)
    return result | {"ok": not result["problems"]}


def load(name: str, spec: TaskSpec, seed: int, strict: bool, report: Report) -> Task:
    """The whole way from files to a Task; errors that spoil one row go to ``report``."""
    spec, meta, tables = sources(spec, report)
    train = tables["train"]
    kind = "multilabel" if spec.kind == "classify" and meta.get("multilabel") is True else spec.kind
    cols = columns(spec, kind, tables)
    label = cols["label"]
    corpus = read_corpus(spec.corpus, report) if spec.corpus else None
    declared = spec.labels or (train.labels.get(label) if isinstance(label, str) else None)
    values = {split: [label_of(row, label) for row in table.rows] for split, table in tables.items()}
    kind = kind or infer_kind(values["train"], cols, train, bool(declared), corpus is not None)
    kind = "pair" if kind == "classify" and cols["text_b"] else kind
    needs = {"pair": cols["text_b"], "choice": cols["choices"], "retrieve": corpus is not None}
    if not needs.get(kind, True):
        key = {"pair": "text_b: COLUMN", "choice": "choices: COLUMN", "retrieve": "corpus: FILE, of id and text"}[kind]
        raise train.head(f"kind {kind} needs {key}; columns are {', '.join(train.columns)}")
    targets = label if isinstance(label, list) else meta.get("targets")
    if kind == "multilabel" and isinstance(label, list):
        declared = label
    cells = [value for part in values.values() for value in part]
    space = Space(kind, declared, cells, corpus, targets, flags=isinstance(label, list))

    pools, ids = dict[str, Rows](), dict[str, list[int]]()
    for split, table in tables.items():
        pools[split], ids[split] = encode(table, values[split], cols, kind, space, report)
    something_to_learn(pools["train"], kind, space, train)
    counts, warnings = oddities(pools, tables, ids)
    rows = splits(name, pools, spec, seed, train, warnings)
    unseen: list[int] = []
    if space.names:
        learned = {index for part in ("train", "valid") for row in rows[part].label for index in classes(row)}
        unseen = sorted({index for row in rows["test"].label for index in classes(row)} - learned)
    if space.names and unseen:
        names = ", ".join(repr(space.names[i]) for i in unseen[:5]) + ", ..." * (len(unseen) > 5)
        warnings.append(f"labels seen only in test: {len(unseen)} ({names})")
        if strict:
            fix = "add training rows, drop these test rows, or set strict: false"
            raise PlacedError(f"label seen only in test: {names}; {fix}", tables.get("test", train).source)
    counts = {split: len(part) for split, part in rows.items()} | counts | {"unseen": len(unseen), "skipped": 0}
    return Task(
        name, kind, space.names, spec.metric, rows["train"], rows["valid"], rows["test"], corpus, spec.max_length,
        spec.weight or 1.0, spec.description or "", targets if kind == "regress" else None, warnings, counts,
    )  # fmt: skip


def something_to_learn(rows: Rows, kind: str, space: Space, table: Table) -> None:
    known = [label for label in rows.label if label is not None]
    if not known:
        raise PlacedError("no row has a label" if len(rows) else "no row can be used", table.source)
    if space.names or kind in ("regress", "pair"):
        different = {tuple(label) if isinstance(label, list) else (label,) for label in known}
        seen = set().union(*different) if kind == "tag" else different
        if len(seen) < 2:
            names = space.names
            what = ", ".join(names[i] for i in sorted(classes(known[0]))) or "none" if names else known[0]
            raise PlacedError(f"every label is {what!r}; expected two different ones or more for {kind}", table.source)


def splits(name: str, pools: dict[str, Rows], spec: TaskSpec, seed: int, table: Table, warnings: list[str]) -> dict[str, Rows]:
    """train, valid and test; the missing ones are held out, seeded by the seed, the task's name and the split's."""
    shares = {"test": 0.2, "valid": 0.1} | (spec.split if isinstance(spec.split, dict) else {})
    rows = {"train": pools["train"]}
    for split, share in (("test", shares["test"]), ("valid", shares["valid"])):
        if split == "valid" and spec.limit:
            rows["train"] = limited(rows["train"], spec.limit, Random(f"{seed}/{name}/limit"))
        given = pools.get(split, rows["train"].take([]))
        rows[split] = given.take([i for i, label in enumerate(given.label) if label is not None])
        if not len(rows[split]) and share:
            if len(given):
                warnings.append(f"no row of {split} has a label: {share:.0%} of train is held out instead")
            rows["train"], rows[split] = hold_out(rows["train"], share, Random(f"{seed}/{name}/{split}"))
            if not len(rows[split]):
                few = f"{len(rows['train'])} rows are too few to hold out {split}"
                raise PlacedError(f"{few}: give {split}: FILE, or more rows", table.source)
    return rows
