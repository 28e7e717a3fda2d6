"""MOORE: a mixture of experts whose outputs are made orthogonal for each input (Hendawy et al. 2024, arXiv:2311.11385).

    dy = sum_k w_k u_k,  u_1 ... u_k = Gram-Schmidt of the experts' outputs h_1 ... h_k by token,  w [k] per task and site

    r_k = h_k - sum_{j<k} (h_k . u_j) u_j,  u_k = r_k / sqrt(|r_k|^2 + (1e-4 |h_k|)^2 + 1e-12)

The vectors have length 1, so an expert gives a direction and w its size. What is added under the root is far below |r_k|
unless an expert repeats the earlier ones, or says nothing: then it is left out, where dividing by |r_k| would blow up noise.

``slots``: experts, trained by all tasks together.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.types import Count

rows = ("moore",)


@dataclass(frozen=True)
class Moore(Gate):
    slots: Count = 4

    def own(self, site: Site, slots: int, rng: Generator) -> Params:
        return {"w": torch.randn(slots, generator=rng) / slots**0.5}

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return own["w"]

    def combine(self, w: Tensor, out: Tensor) -> Tensor:
        return torch.einsum("k,kld->ld", w.float(), orthonormal(out.float())).to(out.dtype)


def orthonormal(h: Tensor) -> Tensor:
    """Gram-Schmidt over the first axis of h [k, l, d]."""
    basis: list[Tensor] = []
    for v in h:
        r = v - sum(((v * u).sum(-1, keepdim=True) * u for u in basis), torch.zeros_like(v))
        r = r - sum(((r * u).sum(-1, keepdim=True) * u for u in basis), torch.zeros_like(v))  # again: the first leaves rounding
        square = (r * r).sum(-1, keepdim=True) + 1e-8 * (v * v).sum(-1, keepdim=True)
        basis.append(r / (square + 1e-12).sqrt())
    return torch.stack(basis)
