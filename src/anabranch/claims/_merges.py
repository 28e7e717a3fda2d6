"""What the claims of merges share: dense trees of slots, merges chosen on validation rows, shares of the single tasks' scores,
libraries composed for a task with few labels."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank, Tree
from anabranch.core.names import make
from anabranch.engine.algebra import dense_bank
from anabranch.engine.merging import Merged, dense, look_of, method_of, plain
from anabranch.engine.passes import Slot, seeded
from anabranch.merge._trees import combined, norm
from anabranch.task.data import Rows, Task

SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def trees(trained: Any) -> list[Tree]:
    """Each slot's change of f as a dense tree."""
    (bank,) = trained.filled()
    return [dense(trained.suite.f, bank, j + 1) for j in range(len(trained.slots))]


def norms(trained: Any) -> list[float]:
    """The length of each task vector."""
    return [float(norm(tree)) for tree in trees(trained)]


def kept(scores: Mapping[str, float], single: Mapping[str, float]) -> dict[str, float]:
    """Scores as shares of those of the tasks' own slots: the field's normalised accuracy."""
    return {n: s / max(single[n], 1e-3) for n, s in scores.items()}


def scaled(trained: Any, method: Any, scales: Sequence[float] = SCALES) -> list[Merged]:
    """One merge at scale 1, computed once, at several scales: for methods whose result is proportional to their scale."""
    name, settings = (method, {}) if isinstance(method, str) else next(iter(method.items()))
    whole = trained.merged({name: {**settings, "scale": 1.0}})
    found: list[Merged] = []
    for scale in scales:
        bank = replace(whole.bank, tables={n: t.copy() for n, t in whole.bank.tables.items()})
        bank.tables["own"].data *= scale
        found.append(replace(whole, bank=bank))
    return found


def best(trained: Any, made: Iterable[Merged]) -> Merged:
    """The merge with the highest mean validation score."""

    def valid(one: Merged) -> float:
        found = trained.under(one, "valid")
        return sum(found.values()) / len(found)

    return max(made, key=valid)


def stored(bank: Any) -> int:
    """Bytes of all slots and what they share, floats in bf16."""
    total = 0
    for name, table in bank.tables.items():
        rows = 1 if name == "shared" else len(table) - 1
        total += rows * table.n * (2 if table.data.is_floating_point() else table.data.element_size())
    return total


def holding(trained: Any, changed: Sequence[Tree]) -> Any:
    """The same tasks and heads around other dense slots."""
    row = trained.banks[0].tables["own"].row
    return replace(trained, slots=[{"0.own": row(t), "0.keys": torch.zeros(0)} for t in changed])


def shots(lab: Any, task: Task, each: int, draw: int = 0) -> Task:
    """The task with ``each`` labelled rows a class, drawn by the seed: a quarter validates, the others train."""
    order = torch.randperm(len(task.train), generator=seeded(lab.seed, task.name, "shots", draw)).tolist()
    rows: dict[Any, list[int]] = {}
    for i in order:
        rows.setdefault(str(task.train.label[i]), []).append(i)
    held = max(1, each // 4)
    valid = [i for found in rows.values() for i in found[:held]]
    train = [i for found in rows.values() for i in found[held:each]]
    name = f"{task.name}~{draw}" if draw else task.name
    return replace(task, name=name, train=task.train.take(train), valid=task.train.take(valid))


def missing_words(lab: Any, name: str, tasks: Sequence[Task], rows: int, most: int = 64) -> Task:
    """A self-supervised task over texts of these tasks: which of ``most`` frequent words were taken out of a text."""
    texts = [re.findall(r"[\w']+|[^\w\s]", t.lower()) for task in tasks for t in task.train.text]
    texts = [texts[i] for i in torch.randperm(len(texts), generator=seeded(lab.seed, name)).tolist()[:rows]]
    counts = Counter(w for text in texts for w in set(text) if w.isalpha() and len(w) > 3)
    words = [w for w, _ in counts.most_common(most)]
    number = {w: i for i, w in enumerate(words)}
    column = [" ".join(w for w in text if w not in number) or "nothing" for text in texts]
    labels = [sorted({number[w] for w in text if w in number}) for text in texts]
    cut = max(1, len(column) // 10)
    whole = Rows(column, None, None, None, labels)
    here = list(range(len(column)))
    return replace(tasks[0], name=name, kind="multilabel", labels=words, metric=None, train=whole.take(here[cut:]),
                   valid=whole.take(here[:cut]), test=whole.take(here[:cut]), corpus=None, targets=None)  # fmt: skip


def of_bank(trained: Any, bank: Bank) -> Any:
    """The same tasks and heads around the slots of another bank, one a task."""
    slots = [{f"0.{t}": bank.tables[t].data[i + 1].clone() for t in bank.slot_tables} for i in range(len(bank))]
    empty = replace(bank, tables={n: t.copy() for n, t in bank.tables.items()})
    for name in bank.slot_tables:
        empty.tables[name].shrink([])
    return replace(trained, banks=[empty], slots=slots)


def composed(suite: Any, name: str, library: Any, method: Any, vectors: Sequence[Tree], few: int = 128) -> tuple[Merged, float]:
    """A merge of a library's slots (``vectors``: their dense trees) for one task of another suite, by its training rows; and
    its mean loss there."""
    (bank,), job, head = library.filled(), suite.jobs[name], suite.heads[name]
    combine = make("merge", method)
    look = look_of(suite.features, [job], [head], bank.sites, vectors, few, suite.lab.seed, "train")
    form = next(iter(signature(method_of(combine)).parameters))
    if form == "bank":
        made = combine(bank, suite.f, look)
    else:
        found = combine(vectors, look) if form == "trees" else combined(vectors, bank.sites, method)
        made = dense_bank(bank.sites, plain(found[0] if isinstance(found, list) else found))
    with torch.no_grad():
        loss = float(look.losses(dense(suite.f, made, 1))[0])
    return Merged(made, [1], [{}]), loss


def view_of(suite: Any, name: str, made: Merged) -> Slot:
    """A task's rows under slot 1 of a merge."""
    return Slot(suite.features, Adapted(suite.f, [made.bank], suite.features.tail), suite.jobs[name].kind.words)


def refitted(suite: Any, found: Mapping[str, tuple[Merged, float]]) -> dict[str, float]:
    """Test scores under each task's own merge, with a linear head fitted anew on its features."""
    heads = suite.refit(lambda name: view_of(suite, name, found[name][0]))
    return {name: suite.score(name, view_of(suite, name, found[name][0]), heads[name]) for name in suite.jobs}
