"""Whole numbers of a few bits, packed without gaps: what masks and quantised deltas are stored as."""

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """[n] numbers in [0, 2^bits) -> [ceil(n bits / 8)] uint8; the first number lies in the lowest bits of the first byte."""
    each = codes.flatten().to(torch.uint8)[:, None] >> torch.arange(bits, dtype=torch.uint8, device=codes.device) & 1
    flat = torch.nn.functional.pad(each.flatten(), (0, -each.numel() % 8)).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8, device=codes.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse: [bytes] (uint8, or floats that hold its numbers) -> [n] fp32."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    each = (packed.to(torch.uint8)[:, None] >> places & 1).flatten()[: n * bits].view(n, bits)
    return (each.float() * 2.0 ** torch.arange(bits, device=packed.device)).sum(1)
