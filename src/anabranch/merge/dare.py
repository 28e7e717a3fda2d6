"""DARE: drop at random and rescale, then add up (Yu et al. 2024, arXiv:2311.03099).

    t_i = d_i * m_i / density,  m_i ~ Bernoulli(density);  d = scale * sum_t t

``density``: share that is kept, rounded to 65536ths, at least one: 16 random bits decide on a number. What stays is divided by
the rounded share, so that the mean over seeds is task arithmetic. ``scale``: of the sum. ``seed``: of the masks, which also
depend on the site's name and on the task's place: a task's mask does not change with the tasks behind it.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anabranch.merge._parts import draws, rounded, sweep, thin
from anabranch.types import Positive, Share

promises = frozenset({"scale", "shape"})
pieces = True  # of a big checkpoint it takes a piece of the rows at a time
neutral = {"density": 1.0, "scale": 1.0}


def dare(
    rows: Tensor,
    site: Any = None,
    whole: Mapping[str, Any] | None = None,
    *,
    density: Share = 0.2,
    scale: Positive = 0.4,
    seed: int = 0,
) -> Tensor:
    """rows [t, *shape] -> [*shape]."""
    drawn = draws(len(rows), site, seed)
    return sweep(rows, lambda d: thin(d, density, drawn).sum(0)).mul_(scale / rounded(density))
