"""Attention masks and rotary tables that f made for l tokens, for a sequence with soft tokens in front."""

from typing import Any

import torch
from torch import Tensor, nn


def fresh_mask(block: nn.Module, x: Tensor, visible: Tensor) -> Tensor:
    """The additive mask [b, 1, l, l] that f left out because every token was real."""
    total, causal = x.shape[1], any(getattr(m, "is_causal", False) for m in block.modules())
    seen = torch.ones(total, total, dtype=torch.bool, device=x.device)
    columns = torch.nn.functional.pad(visible, (0, total - visible.shape[1]), value=True)
    shown = (seen.tril() if causal else seen) & columns[:, None, None, :]
    return torch.where(shown, 0.0, torch.finfo(x.dtype).min).to(x.dtype)


def widen(t: Any, m: int, total: int, visible: Tensor) -> Any:
    """An attention mask [b, 1, l, l] or rotary tables [b, l, d] made for l tokens, for m soft tokens in front of them."""
    if isinstance(t, tuple):
        return tuple(widen(part, m, total, visible) for part in t)
    if not isinstance(t, Tensor) or t.ndim < 3 or t.shape[-2] + m != total:
        return t
    if t.ndim == 3:
        return torch.cat([t[:, :1].expand(-1, m, -1), t], 1)
    hidden = False if t.dtype is torch.bool else torch.finfo(t.dtype).min
    shown = True if t.dtype is torch.bool else 0.0
    front = torch.where(visible, torch.full_like(visible, shown, dtype=t.dtype), hidden)[:, None, None, :]
    t = t.expand(len(visible), -1, -1, -1)
    rows = torch.cat([t[:, :, :1], t], 2) if m == 1 else torch.cat([t[:, :, :1].expand(-1, -1, m, -1), t], 2)
    return torch.cat([front.expand(-1, t.shape[1], total, -1), rows], 3)
