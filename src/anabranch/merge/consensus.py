"""Consensus merging: only what several tasks use stays in the merged vector (Wang et al. 2024, arXiv:2405.07813).

    m_t = [|d_t| > threshold |d - d_t|],  d = the merge of all tasks;   result = d where sum_t m_t >= least, else 0

Numbers that no task uses are called catastrophic, those of one task selfish: ``least`` = 2 drops both, 1 the first, 0 none.
``merge``: task arithmetic or TIES with its settings left alone. ``scale``: of the result; the masks come from the
unscaled sum, as in the paper's code. ``threshold``: lambda; the paper chooses among 0.2 to 0.6 on validation data.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import Tensor

from anabranch.errors import InputError
from anabranch.merge._parts import agree, sweep, trim
from anabranch.merge.ties import edges
from anabranch.types import NonNegative, Positive

rows = ("tall-masks-consensus",)
takes = (2, None)
promises = frozenset({"order", "scale", "shape"})
neutral = {"least": 1, "threshold": 0.4, "scale": 1.0}


def consensus(
    rows: Tensor,
    site: Any = None,
    whole: Mapping[str, Any] | None = None,
    *,
    least: Annotated[int, Ge(0)] = 2,
    threshold: NonNegative = 0.4,
    merge: Literal["task_arithmetic", "ties"] = "task_arithmetic",
    scale: Positive = 0.4,
) -> Tensor:
    """rows [t, *shape] -> [*shape]; InputError for a ``least`` that so many tasks cannot reach, and for a single task."""
    if len(rows) < max(2, least):
        needs = max(2, least)
        raise InputError(f"consensus with least: {least} merges at least {needs} tasks, got {len(rows)}: it would keep nothing")
    edge = edges(rows, whole) if merge == "ties" else None

    def piece(d: Tensor) -> Tensor:
        merged = d.sum(0) if edge is None else agree(trim(d, edge))
        return merged * (uses(d, merged, threshold).sum(0) >= least)

    return sweep(rows, piece).mul_(scale)


def uses(rows: Tensor, merged: Tensor, threshold: Tensor | float) -> Tensor:
    """rows [t, *shape], merged [*shape], threshold a number or [t, 1 ...] -> [t, *shape] bool, the TALL masks."""
    return rows.abs() > threshold * (merged - rows).abs()
