"""What f makes for l tokens, masks, positions and outputs, for a sequence with m soft tokens in front."""

from typing import Any

import torch
from torch import Tensor, nn

from anabranch.core.site import Site
from anabranch.errors import InputError


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


def positions(f: nn.Module, mask: Tensor, visible: Tensor, given: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
    """Positions of the soft tokens [b, m] and of the text [b, length], which moves behind those that its row sees.

    mask [b, whole text] is longer than ``length`` when f has a cache. InputError when f has fewer positions.
    """
    tables = [m for n, m in f.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding)]
    pad = next((t.padding_idx for t in tables if t.padding_idx is not None), None)  # RoBERTa counts from behind its padding
    if given is None:
        given = torch.arange(mask.shape[1], device=mask.device).expand_as(mask) if pad is None else mask.cumsum(1) * mask + pad
        given = given[:, -length:]
    config = getattr(f, "config", None)
    most = getattr(config, "max_position_embeddings", None)
    first, m = 0 if pad is None else pad + 1, visible.shape[1]
    if most is not None and first + m + mask.shape[1] > most:
        raise InputError(f"{mask.shape[1]} tokens and {m} soft tokens are more than the {most} positions of {type(f).__name__}")
    return first + (visible.cumsum(1) - 1).clamp(min=0), given + visible.sum(1, keepdim=True)


def trimmed(out: Any, m: int, length: int) -> Any:
    """f's outputs without the m soft tokens: of every tensor [b, length, d], alone or in a tuple."""
    if isinstance(out, Tensor):
        return out[:, m:] if out.ndim == 3 and out.shape[1] == length else out
    if isinstance(out, dict):
        for name, part in list(out.items()):
            if name != "past_key_values":
                out[name] = trimmed(part, m, length)
        return out
    return tuple(trimmed(part, m, length) for part in out) if isinstance(out, tuple) else out


def input_of(site: Site, args: tuple[Any, ...], y: Tensor) -> Tensor:
    """What a module reads: its first argument, or its own output where that is no sequence of hidden states (an image)."""
    x = args[0] if args and isinstance(args[0], Tensor) else y
    return x if site.kind != "module" or (x.ndim == y.ndim and x.is_floating_point()) else y


def with_first(output: Any, y: Tensor) -> Any:
    """A module's output with y in the place of its first tensor."""
    if isinstance(output, Tensor):
        return y
    if isinstance(output, dict):
        output[next(iter(output))] = y
        return output
    return (y, *output[1:])
