"""A bank: many slots of one delta at the same sites. Slots, not tasks: own parameters, experts, skills, a shared slot.

All numbers of one slot lie in one row of one table, so a batch's slots are gathered, trained, stored and balanced as rows.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from anabranch.core.delta import Delta, Params, Tree
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.errors import InputError


class Table:
    """Rows of equal layout. ``data`` [rows, n]; row 0 stays zero: it stands for "none"."""

    def __init__(self, layout: Mapping[str, Mapping[str, torch.Size]], dtype: torch.dtype = torch.float32) -> None:
        self.layout = {site: dict(names) for site, names in layout.items()}
        self.parts = [(site, name, shape) for site, names in layout.items() for name, shape in names.items()]
        self.sizes = [shape.numel() for _, _, shape in self.parts]
        self.data = torch.zeros(1, sum(self.sizes), dtype=dtype)
        self._room = self.data  # grows by doubling: adding T slots one by one copies O(T), not O(T^2)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def n(self) -> int:
        """Numbers in a row."""
        return self.data.shape[1]

    def grow(self, rows: int) -> range:
        """Appends zero rows and returns their numbers."""
        old, need = len(self), len(self) + rows
        if need > len(self._room):
            self._room = self.data.new_zeros(max(need, 2 * len(self._room)), self.n)
            self._room[:old] = self.data
        self.data = self._room[:need]
        return range(old, need)

    def shrink(self, keep: Sequence[int]) -> None:
        self.data = self._room = self.data[[0, *keep]]

    def put(self, row: int, tree: Tree) -> None:
        self.data[row] = self.row(tree).to(self.data)

    def row(self, tree: Tree) -> Tensor:
        """{site: {name: tensor}} -> [n]."""
        parts = [tree[site][name].reshape(-1) for site, name, _ in self.parts]
        return torch.cat(parts) if parts else self.data.new_zeros(0)

    def split(self, rows: Tensor) -> Tree:
        """[u, n] -> {site: {name: [u, *shape]}}; one split, so that its backward is one concatenation."""
        tree: Tree = {}
        pieces = rows.split(self.sizes, dim=-1) if self.sizes else ()
        for (site, name, shape), piece in zip(self.parts, pieces, strict=True):
            tree.setdefault(site, {})[name] = piece.unflatten(-1, shape) if len(shape) else piece.squeeze(-1)
        return tree

    def get(self, row: int) -> Tree:
        """Copies: what was taken does not change when the row is trained on."""
        return {s: {n: t.clone() for n, t in names.items()} for s, names in self.split(self.data[row]).items()}

    def copy(self) -> "Table":
        other = copy.copy(self)
        other.data = other._room = self.data.clone()
        return other


def layout_of(tree: Tree) -> dict[str, dict[str, torch.Size]]:
    return {site: {name: t.shape for name, t in names.items()} for site, names in tree.items()}


@dataclass
class Bank:
    """``tables``: own (trained), fixed.<kind> (stored only), keys (a slot's gate key), gate (a task's gate tensors), shared."""

    delta: Delta
    gate: Gate
    sites: list[Site]
    tables: dict[str, Table] = field(default_factory=dict)
    stage: int = 0  # banks of one stage add and do not see each other; a later stage sees the earlier ones
    routes: int = 1  # candidates of a row, where the gate keeps tensors for each

    @classmethod
    def make(cls, delta: Delta, gate: Gate, sites: Sequence[Site], rng: Generator, seen: Mapping[str, Params] | None = None,
             stage: int = 0, routes: int = 1) -> "Bank":  # fmt: skip
        bank = cls(delta, gate, list(sites), {}, stage, routes)
        bank.adopt(bank.fresh(rng, seen), bank.gates(rng), {"": delta.shared(bank.sites, rng)})
        return bank

    def adopt(self, slot: Tree, gates: Tree, shared: Tree) -> None:
        """Makes the tables that fit these trees."""
        for name, tree in self.divide(slot).items():
            kind = next((t.dtype for p in tree.values() for t in p.values()), torch.float32)
            self.table(name, layout_of(tree), kind if name.startswith("fixed") else torch.float32)
        self.table("gate", layout_of(gates))
        self.table("shared", layout_of(shared))
        self.tables["shared"].put(1, shared)

    def table(self, name: str, layout: Mapping[str, Mapping[str, torch.Size]], dtype: torch.dtype = torch.float32) -> None:
        """A new table, empty but for row 0; ``shared`` has its one row."""
        self.tables[name] = Table(layout, dtype)
        if name == "shared":
            self.tables[name].grow(1)

    def fresh(self, rng: Generator, seen: Mapping[str, Params] | None = None) -> Tree:
        """The tensors of a new slot: {site: delta's and gate's key tensors}."""
        tree: Tree = {}
        for site in self.sites:
            at_site = None if seen is None else seen.get(site.key)
            p = self.delta.init(site, rng, at_site)
            keys = {f"key.{n}": t for n, t in self.gate.key(site, p, rng, at_site).items()}
            tree[site.key] = p | keys
        return tree

    def gates(self, rng: Generator) -> Tree:
        return {s.key: own for s in self.sites if (own := self.gate.own(s, self.routes, rng))}

    def divide(self, slot: Tree) -> dict[str, Tree]:
        """A slot's tensors by table: own, keys, and what is fixed by dtype."""
        out: dict[str, Tree] = {"own": {}, "keys": {}}
        for site, p in slot.items():
            for name, t in p.items():
                fixed = name in self.delta.fixed or not t.is_floating_point()
                kind = "float" if t.is_floating_point() else str(t.dtype)[6:]
                table = "keys" if name.startswith("key.") else f"fixed.{kind}" if fixed else "own"
                out.setdefault(table, {}).setdefault(site, {})[name.removeprefix("key.")] = t
        return out

    def flat(self, slot: Tree) -> dict[str, Tensor]:
        """A slot's tensors as one row [n] per table; :meth:`tree` is the inverse."""
        divided = self.divide(slot)
        return {name: self.tables[name].row(divided.get(name, {})) for name in self.slot_tables}

    def tree(self, rows: Mapping[str, Tensor]) -> Tree:
        out: Tree = {}
        for name, row in rows.items():
            for site, p in self.tables[name].split(row).items():
                out.setdefault(site, {}).update({("key." if name == "keys" else "") + n: t for n, t in p.items()})
        return out

    @property
    def slot_tables(self) -> list[str]:
        return [n for n in self.tables if n not in ("gate", "shared")]

    def __len__(self) -> int:
        """Slots, without slot 0."""
        return len(self.tables["own"]) - 1

    def add(self, slots: Sequence[Tree]) -> list[int]:
        """Appends slots (as from ``fresh`` or ``take``); returns their ids. InputError, and no change, if one does not fit."""
        divided, ids = [self.divide(slot) for slot in slots], list[int]()
        layouts = {name: self.tables[name].layout for name in self.slot_tables}
        for trees in divided:
            if {name: layout_of(trees.get(name, {})) for name in (*layouts, *trees)} != layouts:
                raise InputError("the slot does not fit this bank: its delta, gate, settings or sites are others")
        for name in layouts:
            ids = list(self.tables[name].grow(len(slots)))
        for i, trees in zip(ids, divided, strict=True):
            for name in layouts:
                self.tables[name].put(i, trees.get(name, {}))
        return ids

    def add_gate(self, gates: Tree) -> int:
        """Appends one task's gate tensors (as from ``gates``); returns its row."""
        row = self.tables["gate"].grow(1)[0]
        self.tables["gate"].put(row, gates)
        return row

    def take(self, slot: int) -> Tree:
        """A copy of a slot's tensors: {site: {name: tensor}}, keys as ``key.<name>``."""
        self._check(slot)
        return self._row(slot)

    def _check(self, *slots: int) -> None:
        for slot in slots:
            if not 0 < slot <= len(self):
                raise InputError(f"the bank has slots 1 to {len(self)}, got {slot}")

    def _row(self, slot: int) -> Tree:
        return self.tree({name: self.tables[name].data[slot].clone() for name in self.slot_tables})

    def remove(self, slots: Sequence[int]) -> dict[int, int]:
        """Drops slots; returns old id -> new id of those that stay."""
        self._check(*slots)
        keep = [i for i in range(1, len(self) + 1) if i not in set(slots)]
        for name in self.slot_tables:
            self.tables[name].shrink(keep)
        return {0: 0} | {old: new for new, old in enumerate(keep, 1)}

    def freeze(self, slot: Tree) -> Tree:
        """A slot as stored and served: its own tensors through ``delta.freeze``, its keys as they are."""
        keys = {s: {n: t for n, t in p.items() if n.startswith("key.")} for s, p in slot.items()}
        return {s: self.delta.freeze({n: t for n, t in p.items() if n not in keys[s]}) | keys[s] for s, p in slot.items()}

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Bank":
        for table in self.tables.values():
            floating = dtype if table.data.is_floating_point() else None
            table.data = table._room = table.data.to(device=device, dtype=floating)
        return self
