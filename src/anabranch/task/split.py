"""Who learns and who judges: a stratified limit, held-out splits by text, and what is odd about the rows."""

import statistics
from bisect import bisect
from collections import Counter
from collections.abc import Hashable, Mapping
from random import Random
from typing import Any

from anabranch.task.label import Rows
from anabranch.task.read import Table

LONG = 100_000  # characters from which on a text is counted as long; the tokenizer cuts it
ODD = {
    "missing": "rows without a label",
    "empty": "empty texts",
    "long": f"texts of {LONG:,} characters or more, to be cut",
    "duplicates": "duplicates",
    "conflicts": "rows whose input was there before with another label",
    "leaks": "test rows that are in training too",
}


def fold(text: str) -> str:
    return " ".join(text.casefold().split())


def inputs(rows: Rows) -> list[tuple[str, ...]]:
    """The whole input of each row as a key, text first; case and white space do not count."""
    keys: list[tuple[str, ...]] = [(fold(text),) for text in rows.text]
    if rows.text_b is not None:
        keys = [(*key, fold(text)) for key, text in zip(keys, rows.text_b, strict=True)]
    if rows.choices is not None:
        keys = [(*key, *map(fold, choices)) for key, choices in zip(keys, rows.choices, strict=True)]
    return keys


def classes(label: Any) -> set[int]:
    """The label indices of a row; none for numbers, ids and text."""
    if isinstance(label, int):
        return {label}
    return set(label) if isinstance(label, list) and label and isinstance(label[0], int) else set()


def strata(labels: list[Any]) -> list[Hashable]:
    """What each row counts as: its rarest class, or the tenth of its first target."""
    count = Counter(index for label in labels for index in classes(label))
    numbers = [label[0] for label in labels if isinstance(label, list) and label and isinstance(label[0], float)]
    edges = statistics.quantiles(numbers, n=10) if len(numbers) > 1 else []

    def stratum(label: Any) -> Hashable:
        if indices := classes(label):
            return min(indices, key=lambda index: (count[index], index))
        return bisect(edges, label[0]) if numbers and label else None

    return [stratum(label) for label in labels]


def apportion(sizes: Mapping[Hashable, int], total: int, least: Mapping[Hashable, int]) -> dict[Hashable, int]:
    """How many of ``total`` each stratum gets: its share, by largest remainder, but ``least`` where that is more."""
    exact = {stratum: total * size / max(1, sum(sizes.values())) for stratum, size in sizes.items()}
    quota = {stratum: max(int(share), least.get(stratum, 0)) for stratum, share in exact.items()}
    for stratum in sorted(sizes, key=lambda s: int(exact[s]) - exact[s]):
        if sum(quota.values()) < total and quota[stratum] < exact[stratum]:
            quota[stratum] += 1
    while sum(quota.values()) > total and (above := [s for s in quota if quota[s] > least.get(s, 0)]):
        quota[max(above, key=lambda s: quota[s])] -= 1
    return quota


def limited(rows: Rows, limit: int, rng: Random) -> Rows:
    """``limit`` rows in their order, stratified, at least one of each class (so more, if there are more classes)."""
    if len(rows) <= limit:
        return rows
    order, kinds = rng.sample(range(len(rows)), len(rows)), strata(rows.label)
    seen: set[int] = set()
    first = []
    for i in order:
        if classes(rows.label[i]) - seen:
            first.append(i)
            seen |= classes(rows.label[i])
    quota = apportion(Counter(kinds), limit, Counter(kinds[i] for i in first))
    taken: Counter[Hashable] = Counter()
    chosen = []
    for i in dict.fromkeys([*first, *order]):
        if taken[kinds[i]] < quota[kinds[i]]:
            taken[kinds[i]] += 1
            chosen.append(i)
    return rows.take(sorted(chosen))


def hold_out(rows: Rows, share: float, rng: Random) -> tuple[Rows, Rows]:
    """(what stays, what is held out): about ``share`` of the different texts, all rows of a text on one side,
    stratified, labelled rows only; no class leaves what stays. Where texts repeat so much that nothing can be divided
    (one instruction for all rows), whole inputs take their place. Where nothing helps, nothing is held out."""
    kinds, keys = strata(rows.label), inputs(rows)
    for group in ([key[:1] for key in keys], keys):
        groups: dict[Hashable, list[int]] = {}
        for i, key in enumerate(group):
            groups.setdefault(key, []).append(i)
        units = list(groups.values())
        rng.shuffle(units)
        quota = apportion(Counter(kinds[unit[0]] for unit in units), max(1, round(share * len(units))), {})
        inside = [set().union(*(classes(rows.label[i]) for i in unit)) for unit in units]
        left = Counter(index for indices in inside for index in indices)
        held: list[int] = []
        wanted = min(sum(quota.values()), len(units) - 1)
        most = max(1, 2 * share * len(rows))  # a text of more rows than this stays: it would be all of what is held out
        for strict in (True, False):  # what a stratum could not give, the others do
            for n, unit in enumerate(units):
                known = all(rows.label[i] is not None for i in unit)
                due = wanted and unit and (quota[kinds[unit[0]]] > 0 or not strict)
                if due and known and len(unit) <= most and all(left[index] > 1 for index in inside[n]):
                    held += unit
                    left.subtract(inside[n])
                    quota[kinds[unit[0]]] -= 1
                    wanted -= 1
                    units[n] = []
        if held:
            return rows.take(sorted(set(range(len(rows))) - set(held))), rows.take(sorted(held))
    return rows, rows.take([])


def oddities(pools: dict[str, Rows], tables: dict[str, Table], ids: dict[str, list[int]]) -> tuple[dict[str, int], list[str]]:
    """Counts of what is odd in the files, and a line for each with the first place where it is met."""
    counts, first = dict.fromkeys(ODD, 0), dict.fromkeys(ODD, "")
    learned: set[tuple[str, ...]] = set()
    for split in sorted(pools, key=["train", "valid", "test"].index):
        rows, seen = pools[split], dict[tuple[str, ...], Any]()
        for i, (key, text, label) in enumerate(zip(inputs(rows), rows.text, rows.label, strict=True)):
            again, before = key in seen, seen.setdefault(key, label)
            found = {
                "missing": label is None,
                "empty": not key[0] or (rows.text_b is not None and not key[1]),
                "long": len(text) >= LONG,
                "duplicates": again and before == label,
                "conflicts": again and before != label and label is not None and before is not None,
                "leaks": split == "test" and key in learned,
            }
            for what in (what for what, yes in found.items() if yes):
                counts[what] += 1
                first[what] = first[what] or tables[split].place(ids[split][i])
        learned |= seen.keys()
    return counts, [f"{ODD[what]}: {n} (first: {first[what]})" for what, n in counts.items() if n]
