"""Arrow: a library of experts routed by token without any training (Ostapenko et al. 2024, arXiv:2405.11157).

    dy = sum_k w_k Delta_k,  w = softmax over the top k of |x . v_k| / temperature

v_k [d_in] per slot and site: the right singular vector of dW_k with the largest singular value, the direction of x that
the expert changes most; its sign means nothing. Read from LoRA's factors by two QR and an SVD of [r, r], or from a dense
dW; a slot that changes nothing has the key zero. Adding a slot changes no other key. The other half of the paper, one
expert for each cluster of like tasks, is ``ab.Library.clusters`` with the gate ``enforced``.

``top``: slots that a token keeps. ``temperature``: below 1 sharpens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.errors import InputError
from anabranch.gate._token import alike, top_softmax
from anabranch.types import Count, Positive

rows = ("mbc-arrow",)


@dataclass(frozen=True)
class Arrow(Gate):
    top: Count = 4
    temperature: Positive = 1.0
    library: ClassVar[bool] = True
    trained: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"dW"})

    def key(self, site: Site, p: Params, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        p = {n: t.float() for n, t in p.items()}
        if site.kind in ("linear", "transposed") and not site.read and set(p) == {"a", "b"}:
            (q, left), (_, right) = torch.linalg.qr(p["a"]), torch.linalg.qr(p["b"].mT)
            u, s, _ = torch.linalg.svd(left @ right.mT)
            return {"v": q @ u[:, 0] * (s[0] > 0)}
        if site.kind in ("linear", "transposed") and "W" in p and set(p) <= {"W", "b"}:
            _, s, vh = torch.linalg.svd(p["W"], full_matrices=False)
            return {"v": vh[0] * (s[0] > 0)}
        raise InputError(
            f"arrow reads its keys from changes of linear layers (lora, dense), got {', '.join(sorted(p))} at {site.key};"
            " other changes of weights are made dense by ab.Library, changes of activations take the gate keyed"
        )

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return top_softmax(alike(at, keys["v"]).abs() / self.temperature, on, self.top)
