"""DARE before TIES: drop at random and rescale, elect a sign, merge what agrees (Yu et al. 2024, arXiv:2311.03099).

    t_i = d_i * m_i / density,  m_i ~ Bernoulli(density)
    d   = scale * mean of the t_i whose sign is sign(sum_t t)   (0 where none is)

``density``: share that is kept, in 65536ths. ``scale``: of the result. ``seed``: of the masks. All as in DARE.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anabranch.merge._parts import agree, draws, rounded, sweep, thin
from anabranch.types import Positive, Share

promises = frozenset({"scale", "shape"})
pieces = True  # of a big checkpoint it takes a piece of the rows at a time
neutral = {"density": 1.0, "scale": 1.0}


def dare_ties(
    rows: Tensor,
    site: Any = None,
    whole: Mapping[str, Any] | None = None,
    *,
    density: Share = 0.5,
    scale: Positive = 0.5,
    seed: int = 0,
) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    drawn = draws(len(rows), site, seed)
    return sweep(rows, lambda d: agree(thin(d, density, drawn))).mul_(scale / rounded(density))
