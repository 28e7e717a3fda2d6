"""DELLA: larger numbers are dropped less often (Deep et al. 2024, arXiv:2406.11617).

    p_i = density + spread * (2 (r_i - 1) / (m - 1) - 1),  r_i in 1 ... m: rank of |d_i| among the m numbers of its neuron
    t_i = d_i * Bernoulli(p_i) / p_i
    d   = scale * mean of the t_i whose sign is sign(sum_t t)   (0 where none is)

A neuron is a row of a matrix; a vector is one. ``density``: share that is kept, 1 keeps everything. ``spread``: how far the
probabilities reach to both sides of it. ``scale``: of the result. ``seed``: of the masks. p_i is rounded to 65536ths and the
masks drawn as in DARE.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anabranch.errors import InputError
from anabranch.merge._parts import CHUNK, agree, draws, drop
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
    m = rows.shape[-1] if rows.ndim > 1 else 1
    drawn, out = draws(len(rows), site, seed), torch.empty_like(rows[0]).view(-1, m)
    neurons = max(1, CHUNK // (m * len(rows)))  # of which ranks are known at once
    for d, made in zip(rows.reshape(len(rows), -1, m).split(neurons, 1), out.split(neurons), strict=True):
        place = d.abs().argsort(dim=-1, stable=True).argsort(dim=-1)  # 0 ... m - 1
        share = (2 * spread / max(1, m - 1) * place).add_(density - spread if m > 1 else density)
        made.copy_(agree(drop(d.flatten(1), share.flatten(1), drawn)).view_as(made))
    return out.mul_(scale).view(rows.shape[1:])
