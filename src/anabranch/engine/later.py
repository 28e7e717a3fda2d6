"""What tasks that come later take from those that trained slots together: these slots under a row of the gate of their own, a
start for that row, or a start for slots of their own. A gate's file says beside it what it lends: ``borrow``, ``average``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from sys import modules
from typing import Any

import torch
from torch import Tensor

from anabranch.core.bank import Bank
from anabranch.core.gate import Gate
from anabranch.core.names import make
from anabranch.engine.features import Features
from anabranch.engine.job import Job
from anabranch.engine.model import Model
from anabranch.engine.store import cut, parts_of, unpack
from anabranch.errors import InputError

Row = dict[str, Tensor]  # by "<bank>.<table>"
MEAN = "text/mean"  # beside a task's stored gate tensors


@dataclass(frozen=True)
class Earlier:
    """``banks`` without slots, but with what slots have in common; every slot; and of each task its row of the gate and the mean
    feature of its texts, where the gate lends rows. ``own``: where later tasks' own slots begin, {} where that is fresh."""

    banks: list[Bank]
    slots: list[Row]
    gates: dict[str, Row]
    means: dict[str, Tensor]
    own: Row

    def begin(self, features: Features, job: Job) -> Row:
        """Where a later task's row of the gate begins; {} where that is fresh."""
        borrow, out = beside(self.banks[0].gate, "borrow"), Row()
        known = [n for n in self.gates if n in self.means]
        for i, bank in enumerate(self.banks if borrow and known else ()):
            filled = replace(bank, tables=bank.tables | {"gate": bank.tables["gate"].copy()})
            for n in known:
                filled.add_gate(bank.tables["gate"].split(self.gates[n][f"{i}.gate"]))
            lent = borrow(filled, torch.stack([self.means[n] for n in known]), mean_of(features, job))
            out[f"{i}.gate"] = bank.tables["gate"].row(lent)
        return out


def trained_by(model: Model, gate: Any) -> Earlier | None:
    """What a bundle's tasks trained together under its gate; None where they did not. ``gate``: what the later tasks' plan says.

    InputError where that is a gate which begins slots at others' mean, and there are none, or none of the same kind.
    """
    shared = model.bundle.get("shared") or {}
    first = shared.get("bank") or len(model.banks)
    full, average = model.banks[first:], None if gate is None else beside(make("gate", gate), "average")
    if average and (not full or any((a.delta, a.sites) != (b.delta, b.sites) for a, b in zip(full, model.banks, strict=False))):
        raise InputError(
            f"gate {gate!r} begins later tasks at the mean of slots that earlier ones trained together, and {model.folder} has"
            " none: fit it with a gate such as mhr or poly, or leave gate out of the plan"
        )
    own: Row = {}
    if average:
        for i, (bank, mine) in enumerate(zip(full, model.banks, strict=False)):
            own |= {f"{i}.{t}": one(row) for t, row in mine.flat(average(bank)).items()}
    joins = full and not own and full[0].gate.trained and not full[0].gate.library and full[0].tables["gate"].n
    if not joins and not own:
        return None
    banks, gates, means = [empty(bank) for bank in full], dict[str, Row](), dict[str, Tensor]()
    slots = [{f"{i}.{t}": one(bank.tables[t].data[k]) for i, bank in enumerate(full) for t in bank.slot_tables}
             for k in range(1, len(full[0]) + 1)]  # fmt: skip
    for name, record in model.tasks.items():
        packed = parts_of(model.folder, record["file"]).gate if record["rung"] == "shared" else {}
        if packed:
            tree = unpack(packed)
            gates[name] = {f"{i}.gate": bank.tables["gate"].row(cut(tree, i)) for i, bank in enumerate(banks)}
            means |= {name: packed[MEAN].float()} if MEAN in packed else {}
    return Earlier(banks, slots if joins else [], gates, means, own)


def lends(gate: Gate, features: Features, job: Job) -> Row:
    """What is stored with a task's row of the gate, so that later tasks may borrow it."""
    return {MEAN: mean_of(features, job).bfloat16()} if beside(gate, "borrow") else {}


def mean_of(features: Features, job: Job) -> Tensor:
    """[d]: the mean of f's own features over the training texts."""
    units: Sequence[int] = [u for row in job.parts["train"].units for u in row]
    return features.vectors[units][:, : features.backbone.d].mean(0)


def beside(gate: Gate, name: str) -> Any:
    """What a gate's file has of this name beside the gate; None without it."""
    return vars(modules[type(gate).__module__]).get(name)


def empty(bank: Bank) -> Bank:
    out = replace(bank, tables={n: table.copy() for n, table in bank.tables.items()})
    for name in (*out.slot_tables, "gate"):
        out.tables[name].shrink([])
    return out.to(torch.float32)


def one(row: Tensor) -> Tensor:
    return row.float() if row.is_floating_point() else row.clone()
