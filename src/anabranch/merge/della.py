"""DELLA: larger numbers are dropped less often (Deep et al. 2024, arXiv:2406.11617).

    p_i = density + spread * (2 (r_i - 1) / (m - 1) - 1),  r_i in 1 ... m: rank of |d_i| among the m numbers of its neuron
    t_i = d_i * Bernoulli(p_i) / p_i
    d   = scale * mean of the t_i whose sign is sign(sum_t t)   (0 where none is)

A neuron is a row of a matrix; a vector is one. ``density``: share that is kept, 1 keeps everything. ``spread``: how far the
probabilities reach to both sides of it. ``scale``: of the result. ``seed``: of the masks, as in DARE.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anabranch.errors import InputError
from anabranch.merge._parts import agree, draws, drop
from anabranch.types import Fraction, Positive, Share

promises = frozenset({"scale"})
neutral = {"density": 1.0, "scale": 1.0}


def della(
    rows: Tensor,
    site: Any = None,
    whole: Mapping[str, Any] | None = None,
    *,
    density: Share = 0.5,
    spread: Fraction = 0.15,
    scale: Positive = 0.5,
    seed: int = 0,
) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    spread = 0.0 if density == 1 else spread
    if not 0 < density - spread <= density + spread <= 1:
        raise InputError(f"della: density - spread to density + spread lies in (0, 1], got {density:g} and {spread:g}: "
                         f"for this density pass a spread below {min(density, 1 - density):g}")  # fmt: skip
    place = rows.abs().argsort(dim=-1, stable=True).argsort(dim=-1)  # 0 ... m - 1
    share = (2 * spread / max(1, rows.shape[-1] - 1) * place).add_(density - spread if rows.shape[-1] > 1 else density)
    kept = drop(rows.flatten(1), share.flatten(1), draws(len(rows), site, seed))
    return agree(kept).mul_(scale).view(rows.shape[1:])
