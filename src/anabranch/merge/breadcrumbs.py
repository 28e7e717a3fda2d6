"""Model Breadcrumbs: without the smallest and the largest numbers of every tensor (Davari and Belilovsky 2024, arXiv:2312.06795).

    t_i = d_i where |d_i| is, behind the largest ``outliers`` of its task, among the next ``density``, else 0
    d   = scale * sum_t t

``density``: share that is kept. ``outliers``: share of the largest numbers that is dropped; fewer where both exceed 1.
``scale``: of the sum.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anabranch.merge._parts import keep, ranked, sweep, trim
from anabranch.types import Fraction, Positive, Share

promises = frozenset({"order", "scale", "shape"})
neutral = {"density": 1.0, "scale": 1.0}


def breadcrumbs(
    rows: Tensor,
    site: Any = None,
    whole: Mapping[str, Any] | None = None,
    *,
    density: Share = 0.15,
    outliers: Fraction = 0.01,
    scale: Positive = 0.4,
) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    n = rows[0].numel()
    kept = keep(density, n)
    above = min(int(outliers * n), n - kept)
    low, high = ranked(rows, above + kept, above + 1)
    return sweep(rows, lambda d: trim(d, low).mul_(d.abs().le_(high)).sum(0)).mul_(scale)
