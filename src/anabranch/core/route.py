"""Which slots each row takes (``Route``), and the tensors of these slots, gathered once per forward pass (``Opened``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from anabranch.core.bank import Bank, Tree
from anabranch.core.delta import Delta, Params
from anabranch.errors import InputError

LONG_RUN = 6  # rows in a row with the same slots from which one shared product beats a batched one (measured)
FEW = 4  # parts of a batch, some with rows of many slots, up to which they beat one batched product of all rows (measured)


class Stretch(NamedTuple):
    """Rows start:stop; ``same``: all take the same slots; ``full``: none of these is 0; ``alone``: all are of one task, too."""

    start: int
    stop: int
    same: bool
    full: bool
    alone: bool = False


@dataclass(frozen=True)
class Route:
    """Slots ids [b, k] (0 = none), optional weights w [b, k], optional rows of the gate's table who [b]."""

    ids: Tensor
    w: Tensor | None = None
    who: Tensor | None = None
    runs: tuple[Stretch, ...] = ()  # the rows, cut where their slots change; known before the forward pass
    turns: tuple[Stretch, ...] = ()  # the same, cut where the task changes, too
    ends: tuple[int, int] = (0, 0)  # the lowest and the highest slot

    @classmethod
    def to(cls, ids: Tensor | Sequence[int], w: Tensor | None = None, who: Tensor | None = None) -> "Route":
        """From ids [b] or [b, k]."""
        ids = torch.as_tensor(ids)
        ids = ids[:, None] if ids.ndim == 1 else ids
        slots, tasks = ids.tolist(), [] if who is None else who.tolist()
        every = [slot for row in slots for slot in row] or [0]
        runs = _cut(slots, tasks, False)
        return cls(ids, w, who, runs, _cut(slots, tasks, True) if tasks else runs, (min(every), max(every)))

    def stretches(self, matrix: bool, learns: bool = False) -> list[Stretch]:
        """Long runs on their own and the short ones between them together; all rows at once where that makes many parts.

        ``matrix``: every run on its own. ``learns``: never all rows, nor several tasks, so that a run's part depends on it alone.
        """
        if torch.compiler.is_compiling() or not self.runs:
            return [Stretch(0, len(self.ids), False, False)]
        out: list[Stretch] = []
        for long, group in groupby(self.turns if learns else self.runs, lambda run: matrix or run.stop - run.start >= LONG_RUN):
            some = list(group)
            out += some if long else [Stretch(some[0].start, some[-1].stop, False, all(run.full for run in some))]
        few = learns or len(out) <= FEW or all(part.same for part in out)
        return out if few else [Stretch(0, len(self.ids), False, all(run.full for run in self.runs))]


def _cut(slots: list[list[int]], tasks: list[int], apart: bool) -> tuple[Stretch, ...]:
    """Runs of rows with the same slots, and of the same task where they are to be ``apart``."""
    rows = [(row, tasks[i] if tasks and apart else 0) for i, row in enumerate(slots)]
    cuts = [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1]]
    ends = [*cuts[1:], len(rows)]
    return tuple(Stretch(a, b, True, all(slots[a]), len({*tasks[a:b]}) < 2) for a, b in zip(cuts, ends, strict=True))


class Opened:
    """The slots of one bank that a forward pass uses. ``sources`` [rows, n] stand in for tables: a trainer's leaves."""

    def __init__(self, bank: Bank, sources: Mapping[str, Tensor], route: Route, dtype: torch.dtype) -> None:
        slots = len(sources.get("own", bank.tables["own"].data)) - 1
        for slot in route.ends:
            if not 0 <= slot <= slots:
                raise InputError(f"the bank has slots 1 to {slots}, got {slot}")
        if bank.tables["gate"].n and route.who is None:
            raise InputError(f"{type(bank.gate).__name__} keeps tensors for each task: the route needs who, their rows [b]")
        self.bank, self.sources, self.dtype, self.single = bank, sources, dtype, route.ids.shape[1] == 1
        self.lists: dict[str, tuple[Tensor, ...]] = {}
        learns = any(t.requires_grad for t in sources.values())  # then no run may depend on its company, to the last bit
        self.parts = route.stretches(type(bank.delta).apply is Delta.apply, learns)  # a matrix per run, not per row
        self.trees = {part: self._open(route, part) for part in self.parts}

    def at(self, part: Stretch, site: str, dtype: torch.dtype) -> list[Params]:
        """(own, keys, gate, shared) of a site: [k, ...] where all rows are the same, [b, k, ...] elsewhere."""
        found = zip(self.trees[part], (site, site, site, ""), strict=True)
        return [{n: t.to(dtype) if t.is_floating_point() else t for n, t in tree.get(key, {}).items()} for tree, key in found]

    def factors(self, site: str, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Low-rank factors of each part; none where rows of a part differ, or the delta is not low-rank."""
        if torch.compiler.is_compiling() or not (self.single and all(part.same for part in self.parts)):
            return []
        slots = [{n: t[0].to(dtype) for n, t in self.trees[part][0][site].items()} for part in self.parts]
        return [found for p in slots if (found := self.bank.delta.factors(p))]

    def _open(self, route: Route, part: Stretch) -> tuple[Tree, Tree, Tree, Tree]:
        cut = part.start if part.same else slice(part.start, part.stop)
        own: Tree = {}
        for name in self.bank.slot_tables:
            if name != "keys":
                for site, p in self._take(name, route.ids[cut]).items():
                    own.setdefault(site, {}).update(p)
        mine = cut if part.alone else slice(part.start, part.stop)
        gate = self._take("gate", route.who[mine]) if route.who is not None else {}
        return own, self._take("keys", route.ids[cut]), gate, self._take("shared", None)

    def _take(self, name: str, ids: Tensor | None) -> Tree:
        """The rows ids; None: the one row of what all slots share."""
        table = self.bank.tables[name]
        if not table.n:
            return {}
        source = self.sources.get(name, table.data)
        if ids is None:
            picked = source[1]
        elif source.requires_grad and ids.ndim < 2 and not torch.compiler.is_compiling():  # no zero-fill for each stretch
            rows = self.lists.setdefault(name, source.unbind(0))
            picked = rows[int(ids)] if ids.ndim == 0 else torch.stack([rows[i] for i in ids.tolist()])
        else:
            picked = source.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)  # source[ids] takes longer
        return table.split(picked.to(self.dtype) if picked.is_floating_point() else picked)
