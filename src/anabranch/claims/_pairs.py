"""Tasks of pairs from texts: which second half belongs to a first half, which example to a text of the same class."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anabranch.task.data import Rows, Task


def retrieval(task: Task, corpus: dict[str, str], parts: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> Task:
    """``parts``: texts and ids of what belongs to them, for training, validation and test."""
    train, valid, test = (Rows(list(text), None, None, None, [[i] for i in ids]) for text, ids in parts)
    return replace(task, kind="retrieve", labels=None, metric=None, corpus=corpus, train=train, valid=valid, test=test)


def halves(task: Task) -> Task:
    """The texts of a task without their labels: a half in words, and the other half of the same text."""
    corpus: dict[str, str] = {}
    parts = []
    for name in ("train", "valid", "test"):
        words = [text.split() for text in getattr(task, name).text if len(text.split()) > 3]
        ids = [f"{name} {i}" for i in range(len(words))]
        corpus |= {i: " ".join(w[len(w) // 2 :]) for i, w in zip(ids, words, strict=True)}
        parts.append(([" ".join(w[: len(w) // 2]) for w in words], ids))
    return retrieval(task, corpus, parts)


def examples(task: Task) -> Task:
    """Which of the classes' first training texts is of a text's class; that text is no query."""
    first: dict[int, int] = {}
    for i, label in enumerate(task.train.label):
        first.setdefault(label, i)
    keep = {"train": [i for i, label in enumerate(task.train.label) if first[label] != i]}
    parts = []
    for name in ("train", "valid", "test"):
        rows: Rows = getattr(task, name)
        ids = [i for i in keep.get(name, range(len(rows))) if rows.label[i] in first]
        parts.append(([rows.text[i] for i in ids], [str(rows.label[i]) for i in ids]))
    return retrieval(task, {str(label): task.train.text[i] for label, i in first.items()}, parts)


def needed(task: Task) -> Task:
    """A retrieval task with only those documents that belong to one of its rows."""
    rows = [*task.train.label, *task.valid.label, *task.test.label]
    ids = {i for label in rows for i in label or ()}
    return replace(task, corpus={i: text for i, text in (task.corpus or {}).items() if i in ids})
