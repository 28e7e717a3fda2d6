"""A weight change of a few bits: quantised task vectors (Kim et al. 2025, arXiv:2503.06921).

    [dW, db] = scale (q - zero)  [ + what a base of ``base`` bits, common to all slots, holds ]
    q = round(D / scale) + zero in [0, 2^bits),  scale = (max(D, 0) - min(D, 0)) / (2^bits - 1),  zero = round(-min(D, 0) / scale)

D is W or b of the slot, less the base where there is one. Rounding passes the gradient unchanged, so that a slot may also
be trained at the bits that it is stored in. ``bits``: of a number. ``base``: bits of the common base, 0: none. ``group``:
numbers that share one scale, 0: the whole tensor. D and scale are rounded to bfloat16 first, so that a bank served in that
type has the same codes; each number is kept to half a scale and two parts in 2^8 of itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Generator, Tensor

from anabranch.core.delta import Delta, Params
from anabranch.core.site import Site
from anabranch.delta._bits import pack, unpack
from anabranch.delta._common import here, named, shapes

Bits = Annotated[int, Interval(ge=1, le=8)]


@dataclass(frozen=True)
class Quantised(Delta):
    bits: Bits = 4
    base: Annotated[int, Interval(ge=0, le=8)] = 0
    group: Annotated[int, Interval(ge=0)] = 0
    at: ClassVar = ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.in", "mlp.out")
    lr: ClassVar[float] = 1e-4

    def init(self, site: Site, rng: Generator, seen: Mapping[str, Tensor] | None = None) -> Params:
        return named(site, {n: torch.zeros(shape) for n, shape in shapes(site, "quantised").items()})

    def weight(self, p: Params, W: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        mine = here(p, "W") or here(p, "W_codes")
        like = {"W": W, "b": b}
        out = {n: self.value(mine, n, t) + self.common(mine, n, t) for n, t in like.items() if t is not None}
        return out.get("W"), out.get("b")

    def value(self, mine: Params, name: str, like: Tensor) -> Tensor:
        if name in mine:
            D = mine[name]
            return restore(*coded(D, self.bits, self.group), D.shape, D.dtype) + (D - D.detach())  # the brackets are 0
        return decoded(mine, name, self.bits, self.group, like)

    def common(self, mine: Params, name: str, like: Tensor) -> Tensor | float:
        return decoded(mine, f"base_{name}", self.base, self.group, like) if self.base else 0.0

    def freeze(self, p: Params) -> Params:
        return {k: t for n, D in p.items() for k, t in stored(D, n, self.bits, self.group).items()}


def coded(D: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Any shape -> codes [g, m], scale [g, 1], zero [g, 1], in fp32."""
    flat, levels = D.detach().flatten().bfloat16().float(), 2**bits - 1
    m = group or flat.numel()
    rows = torch.nn.functional.pad(flat, (0, -flat.numel() % m)).view(-1, m)
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / levels).bfloat16().float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / scale).round().clamp(0, levels)
    return ((rows / scale).round() + zero).clamp(0, levels), scale, zero


def restore(codes: Tensor, scale: Tensor, zero: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return ((codes - zero) * scale.float()).flatten()[: shape.numel()].view(shape).to(dtype)


def stored(D: Tensor, name: str, bits: int, group: int) -> Params:
    """``name`` may carry a site: ``W@site`` -> ``W_codes@site`` and so on."""
    plain, at, key = name.partition("@")
    codes, scale, zero = coded(D, bits, group)
    parts = {"codes": pack(codes, bits), "scale": scale[:, 0], "zero": zero[:, 0].to(torch.uint8)}
    return {f"{plain}_{n}{at}{key}": t for n, t in parts.items()}


def decoded(mine: Params, name: str, bits: int, group: int, like: Tensor) -> Tensor:
    packed, scale, zero = (mine[f"{name}_{n}"] for n in ("codes", "scale", "zero"))
    codes = unpack(packed, bits, len(scale) * (group or like.numel())).view(len(scale), -1)
    return restore(codes, scale[:, None], zero[:, None].float(), like.shape, scale.dtype)
