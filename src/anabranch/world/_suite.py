"""The eight tasks over one list of functions."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from anabranch.errors import InputError
from anabranch.world._prose import plain
from anabranch.world._scan import Function, digest
from anabranch.world._split import SPLITS

FEWEST = 30
AREAS = {  # what a word in a file's path says that the file is for; "" takes a library's own area away
    "": "utils utilities util printing parsing errors exceptions callback callbacks config gui interactive",
    "algebra": "library:sympy polys ntheory combinatorics algebras sets",
    "calculus": "integrate interpolate special functions integrals series polynomial calculus concrete",
    "concurrency": "asyncio multiprocessing threading concurrent distributed futures queue subprocess",
    "dates and times": "tseries datetimes timedeltas periods period datetimelike calendar datetime zoneinfo",
    "files": "library:fsspec library:pyarrow io readwrite csv json xml zipfile tarfile gzip plistlib tempfile",
    "geometry and physics": "geometry spatial physics vector diffgeom",
    "graphs": "library:networkx csgraph",
    "internet": "http urllib email wsgiref smtplib imaplib ftplib xmlrpc socketserver mailbox",
    "linear algebra": "linalg matrices matrixlib matlib sparse",
    "machine learning": "library:scikit-learn",
    "neural networks": "nn ao models generation autograd",
    "plotting": "plotting drawing tkinter turtle",
    "signals and images": "signal fft fftpack ndimage windows image_utils",
    "solvers": "optimize solvers odr optim",
    "statistics": "stats distributions random covariance mixture",
    "tables": "library:pandas library:datasets compute records",
}
_AREA = {word: area for area, words in AREAS.items() for word in words.split()}


class Row(NamedTuple):
    function: Function
    area: str  # "" if it has none
    split: str
    text: str  # the masked summary, with the marks of _prose
    shown: str  # the summary as the docs have it
    later: str  # a later sentence that no other function has, masked, marked; "" if there is none
    tagged: tuple[tuple[list[str], list[str]], ...]  # sentences that mark parameters: (tokens, labels)
    sections: frozenset[str]


class Task(NamedTuple):
    kind: str
    metric: str
    description: str
    rows: list[tuple[Row, dict[str, Any]]]
    labels: list[str] | None = None  # None: no label names (regress, choice, retrieve), or not settled yet
    multilabel: bool = False


def area(function: Function) -> str:
    words = [part.lstrip("_") for part in re.split(r"[/.]", function.file)[:-1]]
    known = [_AREA[word] for word in words if word in _AREA]
    return known[-1] if known else _AREA.get(f"library:{function.library}", "")


def document(row: Row) -> str:
    """What ``find`` finds: public name, signature, summary."""
    function = row.function
    return f"{function.name.removesuffix(function.own)}{function.signature}: {row.shown}"


def tasks(rows: list[Row], seed: int) -> dict[str, Task]:
    """The suite; labels are indices into ``labels``, rows are shuffled. InputError: too few functions for a task."""
    siblings: dict[str, list[Row]] = {}  # by file, and a file is in one split
    for row in sorted(rows, key=lambda row: digest(seed, "sibling", row.function.name)):
        siblings.setdefault(row.function.file, []).append(row)
    known = [(row, len(row.function.params)) for row in rows if row.function.params is not None]
    suite = {
        "library": Task(
            "classify", "accuracy", "Which library documents this function?",
            [(row, {"text": plain(row.text), "label": row.function.library}) for row in rows],
        ),
        "area": Task(
            "classify", "accuracy", "What is this function for?",
            [(row, {"text": plain(row.text), "label": row.area}) for row in rows if row.area],
        ),
        "sections": Task(
            "classify", "micro_f1", "Which sections does the docstring with this summary have?",
            [(row, {"text": plain(row.text), "label": sorted(row.sections)}) for row in rows], multilabel=True,
        ),
        "arity": Task(
            "regress", "spearman", "log(1 + n) of the number of parameters, without self, *args and **kwargs",
            [(row, {"text": plain(row.text), "label": round(math.log1p(n), 4)}) for row, n in known],
        ),
        "params": Task(
            "tag", "span_f1", "Which tokens name a parameter of the function, which are values?",
            [(row, {"text": " ".join(t), "tokens": t, "label": labels}) for row in rows for t, labels in row.tagged],
        ),
        "same": Task(
            "pair-classify", "accuracy", "Do both sentences describe one function? If not, both are from one file.",
            [pair for mine in siblings.values() for pair in _pairs([row for row in mine if row.later])],
        ),
        "which": Task(
            "multiple-choice", "accuracy", "Which summary belongs to this signature? The others are from its file.",
            [choice for mine in siblings.values() for choice in _choices(mine, seed)],
        ),
        "find": Task(
            "retrieve", "recall@5", "A later sentence of a docstring; the documents are name, signature and summary.",
            [(row, {"text": plain(row.later), "label": [row.function.name]}) for row in rows if row.later],
        ),
    }  # fmt: skip
    return {name: _settled(name, task, seed) for name, task in suite.items()}


def _pairs(mine: list[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Each summary and each later sentence is once in a true pair and once in a false one: neither alone says which."""
    for row, other in zip(mine, mine[1:] + mine[:1], strict=True) if len(mine) > 1 else ():
        yield row, {"text": plain(row.text), "text_b": plain(row.later), "label": "same"}
        yield row, {"text": plain(row.text), "text_b": plain(other.later), "label": "different"}


def _choices(mine: list[Row], seed: int) -> Iterator[tuple[Row, dict[str, Any]]]:
    """A signature with parameters, its summary and those of three siblings, each summary as often wrong as the next."""
    for i, row in enumerate(mine if len(mine) > 3 else ()):
        others = [mine[(i + step) % len(mine)] for step in (1, 2, 3)]
        order = sorted([row, *others], key=lambda other: digest(seed, row.function.name, other.function.name))
        if row.function.params:
            choices = [plain(other.text) for other in order]
            yield row, {"text": row.function.signature, "choices": choices, "label": order.index(row)}


def _settled(name: str, task: Task, seed: int) -> Task:
    """Label names become indices; labels with fewer than ``FEWEST`` rows, or absent from train or test, are dropped."""
    rows, labels = task.rows, task.labels
    if task.kind == "tag":
        labels = ["O", "B-param", "B-value"]
        of = {label: i for i, label in enumerate(labels)}
        rows = [(row, fields | {"label": [of[label] for label in fields["label"]]}) for row, fields in rows]
    elif task.kind in ("classify", "pair-classify"):
        each = [(row.split, x) for row, f in rows for x in (f["label"] if task.multilabel else [f["label"]])]
        counts = Counter(x for _, x in each)
        labels = sorted(x for x, n in counts.items() if n >= FEWEST and {("train", x), ("test", x)} <= set(each))
        of = {label: i for i, label in enumerate(labels)}
        if task.multilabel:
            rows = [(row, f | {"label": [of[x] for x in f["label"] if x in of]}) for row, f in rows]
        else:
            rows = [(row, f | {"label": of[f["label"]]}) for row, f in rows if f["label"] in of]
    if len({row.split for row, _ in rows}) < len(SPLITS) or labels is not None and len(labels) < 2:
        raise InputError(f"docstrings: {len(rows)} rows are too few for the task {name!r}: raise total and per_library")
    shuffled = sorted(enumerate(rows), key=lambda item: digest(seed, name, item[1][0].function.name, item[0]))
    return task._replace(rows=[row for _, row in shuffled], labels=labels)


def card(name: str, task: Task, versions: dict[str, str]) -> dict[str, Any]:
    """``task.json``."""
    sizes = Counter(row.split for row, _ in task.rows)
    return {
        "name": name, "kind": task.kind, "labels": task.labels, "metric": task.metric,
        **({"multilabel": True} if task.multilabel else {}), **{f"n_{split}": sizes[split] for split in SPLITS},
        "description": task.description, "language": "en", "source": versions,
        "licence": "the texts belong to the libraries in source and stay under their licences",
    }  # fmt: skip
