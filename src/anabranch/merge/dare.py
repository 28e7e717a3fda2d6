"""DARE: drop at random and rescale, then add up (Yu et al. 2024, arXiv:2311.03099).

    t_i = d_i * m_i / density,  m_i ~ Bernoulli(density);  d = scale * sum_t t

``density``: share that is kept. ``scale``: of the sum. ``seed``: of the masks, which also depend on the site's name.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from anabranch.types import Positive, Share

promises = frozenset({"scale"})
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
    return scale * drop(rows, site, density, seed).sum(0)


def drop(rows: Tensor, site: Any, density: float, seed: int) -> Tensor:
    """Each number stays with probability ``density``, divided by it, else becomes 0."""
    name = getattr(site, "key", site) or ""
    rng = Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    kept = torch.rand(rows.shape, generator=rng) < density
    return torch.where(kept.to(rows.device), rows / density, 0)
