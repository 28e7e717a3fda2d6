"""The rows of the catalogue: one per paper, in our own words, typed. Only the titles are the papers'."""

import functools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from anabranch.atlas.status import STATUSES, statuses
from anabranch.errors import InputError, WorkError, nearest

FILE = Path(__file__).with_name("rows.jsonl")


@dataclass(frozen=True, slots=True)
class Row:
    """One paper and the one claim about it that can be checked here in minutes."""

    n: int  # 0 ... 397, the order in which the rows were drawn
    id: str  # lower case, words joined by "-"; its claim is claims/<id with _>.py
    title: str
    kind: str  # method, application, analysis, theory, benchmark or survey
    family: str  # the folder where a method of this row lives
    also: tuple[str, ...]  # other families that it touches
    idea: str  # the mechanism
    build: str  # what this package owes
    baseline: str  # what the claim compares with
    claim: str
    needs: tuple[str, ...]  # kinds of model or data: "text-encoder", "causal-lm", ...
    fidelity: str  # full: usable on any fitting backbone; miniature: a faithful small instance; finding; reference
    value: int  # for the user, 1 ... 5
    sure: int  # how sure the details are, 1 ... 3
    repo: str | None  # the official code on GitHub, where known


@functools.cache
def rows() -> list[Row]:
    """All rows in the order of ``n``."""
    try:
        found = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
        return [Row(**r | {"also": tuple(r["also"]), "needs": tuple(r["needs"])}) for r in found]
    except (OSError, ValueError, TypeError, KeyError) as cause:
        raise WorkError(f"the catalogue {FILE} cannot be read ({cause}): reinstall anabranch") from cause


def row(id: str) -> Row:
    """The row of an id; ``-`` and ``_`` are the same. Raises InputError with the nearest ids."""
    known = {r.id: r for r in rows()}
    name = id.strip().lower().replace("_", "-")
    if name not in known:
        hint = nearest(name, known)
        close = hint if "did you mean" in hint else ""
        raise InputError(f'no row {id!r}{close}; to find one by words: anabranch atlas search "{id}"')
    return known[name]


def table() -> dict[str, dict[str, int]]:
    """Counts of each status per family, ``{"merge": {"held": 3, ..., "missing": 9}, ...}``; families by name."""
    now = statuses(r.id for r in rows())
    counts = Counter((r.family, now[r.id]) for r in rows())
    return {f: {s: counts[f, s] for s in STATUSES} for f in sorted({r.family for r in rows()})}
