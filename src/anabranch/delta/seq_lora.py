"""Sequential LoRA: a low-rank map behind a layer, which re-mixes what f computed (SeqLoRA of Kim et al. 2023, arXiv:2309.06922).

    dy = (alpha / r) * y a b,  a [d_out, r], b [r, d_out];  b starts at zero
    folded: dW = M W, db = M b0,  M = (alpha / r) * (a b)^T

``rank`` and ``alpha`` as in lora.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Generator, Tensor

from anabranch.core.delta import At, Params
from anabranch.core.site import Site
from anabranch.delta.lora import Lora


@dataclass(frozen=True)
class SeqLora(Lora):
    at: ClassVar[Any] = ("attention.out", "mlp.out")

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        return super().init(replace(site, d_in=site.d_out), rng, seen)

    def apply(self, p: Params, at: At) -> Tensor:
        return super().apply(p, at._replace(x=at.y))

    def factors(self, p: Params) -> None:
        """None: it reads what the layer gives, not its input."""

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        move, _ = super().weight(p, W, b)
        if W is None or move is None:
            raise TypeError("SeqLora changes activations here, not weights, so it cannot be folded into f")
        return move @ W, None if b is None else move @ b
