"""Merges with training between them: what their recipes train with."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from anabranch.core.bank import Bank, Tree
from anabranch.core.names import make
from anabranch.engine.cache import checksum
from anabranch.errors import InputError
from anabranch.merge.tangent import Linearised


def stages(tuned: Any, epochs: int) -> Callable[..., Bank]:
    """``train(delta, base, share, starts=None, tangent=False) -> Bank``: one slot per task of ``tuned``, its Trained.

    Each slot begins at ``base`` (plus its own of ``starts``), trains ``share`` of ``epochs`` passes, and is given back as the
    difference from ``base``. Of a delta other than dense ``base`` is empty, and slots begin at ``starts``. ``tangent``: rows are
    answered by the model that is linear in the slots.
    """

    def train(delta: Any, base: Tree, share: float, starts: Sequence[Tree] | None = None, tangent: bool = False) -> Bank:
        if delta != "dense" and (base or not starts):
            raise InputError(
                f"slots of delta {delta!r} begin at starts and on f itself; only dense ones begin fresh or on a base"
            )
        s, passes, rates = tuned.suite, max(1, round(share * epochs)), tuned.rates
        out = replace(tuned.banks[0], tables={n: t.copy() for n, t in tuned.banks[0].tables.items()})
        if delta != "dense" and starts:
            out = Bank(make("delta", delta), make("gate", "by_task"), out.sites)
            out.adopt(starts[0], {}, {"": {}})  # as many places as these have
            rates = [out.delta.lr]
        zero = out.tree({n: torch.zeros(out.tables[n].n) for n in out.slot_tables})
        low = out.tables["own"].row(base or zero)
        begin = {}
        for n, start in zip(s.jobs, starts or [zero] * len(s.jobs), strict=True):
            rows = out.flat(start)
            begin[n] = {f"0.{t}": row for t, row in (rows | {"own": low + rows["own"]}).items()}
        trainer = s.trainer([out], rates, begin=begin)
        if tangent:
            trainer.adapted = Linearised(trainer.adapted)
        key = {n: s.key([out], rates, n, passes, checksum(begin[n] | tuned.heads[n]), "stage", *["tangent"] * tangent)
               for n in s.jobs}  # fmt: skip
        found = {m.job.name: m for m in trainer.run([(job, tuned.heads[n], passes, key[n]) for n, job in s.jobs.items()])}
        for n in s.jobs:
            best = {t: found[n].best[f"0.{t}"] for t in out.slot_tables}
            out.add([out.tree(best | {"own": best["own"] - low})])
        return out

    return train
