"""Merges with training between them: what their recipes train with."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from anabranch.core.bank import Bank, Tree
from anabranch.core.names import make
from anabranch.engine.cache import checksum
from anabranch.engine.job import Head, Job
from anabranch.engine.train import Trainer
from anabranch.errors import InputError
from anabranch.merge.tangent import Linearised


class Place(Protocol):
    """Where stages train: trainers of banks at their rates, and a hash of all that such a training depends on."""

    def trainer(self, banks: Sequence[Bank], rates: Sequence[float], **more: Any) -> Trainer: ...

    def key(self, banks: Sequence[Bank], rates: Sequence[float], name: str, *more: Any) -> str: ...


def stages(place: Place, bank: Bank, rate: float, pairs: Sequence[tuple[Job, Head]], epochs: int) -> Callable[..., Bank]:
    """``train(delta, base, share, starts=None, tangent=False) -> Bank``: one slot per task, under the head beside it.

    Each slot of ``bank`` (empty, of delta dense) begins at ``base`` (plus its own of ``starts``), trains ``share`` of ``epochs``
    passes, and is given back as the difference from ``base``. Of a delta other than dense ``base`` is empty, and slots begin at
    ``starts``. ``tangent``: rows are answered by the model that is linear in the slots.
    """

    def train(delta: Any, base: Tree, share: float, starts: Sequence[Tree] | None = None, tangent: bool = False) -> Bank:
        if delta != "dense" and (base or not starts):
            raise InputError(
                f"slots of delta {delta!r} begin at starts and on f itself; only dense ones begin fresh or on a base"
            )
        passes, rates = max(1, round(share * epochs)), [rate]
        out = replace(bank, tables={n: t.copy() for n, t in bank.tables.items()})
        if delta != "dense" and starts:
            out = Bank(make("delta", delta), make("gate", "by_task"), out.sites)
            out.adopt(starts[0], {}, {"": {}})  # as many places as these have
            rates = [out.delta.lr]
        zero = out.tree({n: torch.zeros(out.tables[n].n) for n in out.slot_tables})
        low = out.tables["own"].row(base or zero)
        begin = {}
        for (job, _), start in zip(pairs, starts or [zero] * len(pairs), strict=True):
            rows = out.flat(start)
            begin[job.name] = {f"0.{t}": row for t, row in (rows | {"own": low + rows["own"]}).items()}
        trainer = place.trainer([out], rates, begin=begin)
        if tangent:
            trainer.adapted = Linearised(trainer.adapted)  # type: ignore[assignment]
        key = {job.name: place.key([out], rates, job.name, passes, checksum(begin[job.name] | head), "stage",
                                   *["tangent"] * tangent) for job, head in pairs}  # fmt: skip
        found = {m.job.name: m for m in trainer.run([(job, head, passes, key[job.name]) for job, head in pairs])}
        for job, _ in pairs:
            best = {t: found[job.name].best[f"0.{t}"] for t in out.slot_tables}
            out.add([out.tree(best | {"own": best["own"] - low})])
        return out

    return train
