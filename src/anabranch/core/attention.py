"""The *attention* door: keys and values in front of a module's own, through transformers' attention interface."""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.errors import InputError

NAME = "anabranch"
# x [b, l, d] -> keys and values [b, 2, m, d_out], rows that see them [b]
Front = Callable[[Tensor], tuple[Tensor, Tensor] | None]


def listen(module: nn.Module, front: Front) -> None:
    """Makes an attention module ask ``front`` for keys and values at each of its calls. InputError for other interfaces."""
    from transformers import AttentionInterface

    config = getattr(module, "config", None)
    if config is None or not hasattr(sys.modules[type(module).__module__], "eager_attention_forward"):
        raise InputError(f"{type(module).__name__} does not attend through transformers: take another delta, such as lora")
    AttentionInterface.register(NAME, attend)
    own, asked = copy.copy(config), list[Any]()
    own._attn_implementation = NAME
    vars(module).update(config=own, asked=asked, usual=config._attn_implementation)

    def ask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        asked[:] = [front(args[0] if args else kwargs["hidden_states"])]

    module.register_forward_pre_hook(ask, with_kwargs=True)


def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **more: Any) -> Any:
    """Eager attention over m more keys [b, heads, m + l, size]; every query sees those that its row has."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found, eager = vars(module)["asked"].pop(), sys.modules[type(module).__module__].eager_attention_forward
    if found is None:
        return ALL_ATTENTION_FUNCTIONS.get_interface(vars(module)["usual"], eager)(module, q, k, v, mask, **more)
    (keys, values), on = found[0].unbind(1), found[1]
    m, b = keys.shape[1], len(keys)
    k, v = (torch.cat([t.view(b, m, own.shape[1], -1).transpose(1, 2).to(own), own], 2) for t, own in ((keys, k), (values, v)))
    off = torch.finfo(q.dtype).min
    if mask is None:
        causal = getattr(module, "is_causal", False) and q.shape[2] > 1
        mask = torch.full((1, 1, q.shape[2], k.shape[2] - m), off if causal else 0.0, dtype=q.dtype).triu(1)
    shown = torch.where(on[:, None, None, None], 0.0, off).to(q.dtype).expand(b, mask.shape[1], mask.shape[2], m)
    mask = torch.where(mask, 0.0, off).to(q.dtype) if mask.dtype is torch.bool else mask
    mask = torch.cat([shown, mask.expand(b, -1, -1, -1)], 3)
    return eager(module, q, k, v, mask, **more)
