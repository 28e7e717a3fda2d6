"""Hard inputs that the laws share: small backbones of four makes, ragged batches, rows that break sums."""

import copy
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel, ViTConfig, ViTModel

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.delta import Delta
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import find

MAKES = ("bert", "llama", "gpt2", "vit")
TEXT = MAKES[:3]
D, BLOCKS, WORDS = 32, 2, 50
IDS = (2, 0, 1, 3, 2)  # slots of a batch's rows: out of order, one row without, one slot twice


@cache
def backbone(name: str, blocks: int = BLOCKS) -> nn.Module:
    """A random f that no test may change; d = 32, two blocks, no dropout."""
    torch.manual_seed(0)
    size = {"hidden_size": D, "num_hidden_layers": blocks, "num_attention_heads": 4, "intermediate_size": 64}
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    match name:
        case "bert":
            f = BertModel(BertConfig(**size, **dry, vocab_size=WORDS), add_pooling_layer=False)
        case "llama":
            f = LlamaModel(LlamaConfig(**size, num_key_value_heads=2, vocab_size=WORDS, pad_token_id=0))
        case "gpt2":
            dry = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            f = GPT2Model(GPT2Config(n_embd=D, n_layer=blocks, n_head=4, vocab_size=WORDS, **dry))
        case _:
            f = ViTModel(ViTConfig(**size, image_size=16, patch_size=4), add_pooling_layer=False)
    for p in f.parameters():  # biases and scales that are not 0 and 1, weights large enough that answers differ
        p.data += 0.1 * torch.randn_like(p)
    return f.eval()


def batch(name: str, rows: int = len(IDS), length: int = 9) -> dict[str, Tensor]:
    """Rows of different lengths, padded on the right; images have no padding."""
    rng = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=rng)}
    ids = torch.randint(1, WORDS, (rows, length), generator=rng)
    lengths = torch.tensor([length, 3, length - 1, 1, length - 2, *[length] * rows])[:rows]
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < lengths[:, None]).long()}


def row(inputs: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {n: t[i : i + 1] for n, t in inputs.items()}


def real(inputs: dict[str, Tensor], y: Tensor) -> Tensor:
    """y at the real tokens [n, d]."""
    return y[inputs["attention_mask"].bool()] if "attention_mask" in inputs else y.flatten(0, 1)


def sits(delta: Delta, f: nn.Module) -> bool:
    """Whether the delta's own choice of sites fits f: images have no token embedding to put a prompt before."""
    return not (delta.door == "sequence" and delta.at == "embedding" and "pixel" in f.main_input_name)


def bank(f: nn.Module, delta: str | dict | Delta, gate: str | dict = "by_task", at: str | Sequence[str] | None = None,
         slots: int = 3, spread: float = 0.1, **more: int) -> Bank:  # fmt: skip
    """A bank of random slots, moved away from their start by ``spread``."""
    rng, kind = torch.Generator().manual_seed(2), make("delta", delta)
    made = Bank.make(kind, make("gate", gate), find(f, kind.at if at is None else at), rng, **more)
    made.add([made.fresh(rng) for _ in range(slots)])
    own = made.tables["own"].data
    own[1:] += spread * torch.randn(own[1:].shape, generator=rng)
    return made


def frozen(made: Bank, dtype: torch.dtype | None = None) -> Bank:
    """The bank as stored and served, floats in ``dtype``."""
    served = Bank(made.delta, made.gate, made.sites, {}, made.stage, made.routes)
    slots = [made.freeze(made._row(i)) for i in range(len(made) + 1)]  # row 0 tells the layout
    served.adopt(slots[0], {}, {})
    served.tables |= {name: made.tables[name].copy() for name in ("gate", "shared")}
    served.add(slots[1:])
    return served.to(dtype) if dtype else served


def run(adapted: Adapted, inputs: dict[str, Tensor], ids: Sequence | Tensor | None, **more: Tensor) -> Tensor:
    """The last hidden state under the slots ``ids`` of each row."""
    return adapted(inputs, None if ids is None else Route.to(torch.as_tensor(ids), **more)).last_hidden_state


def close(a: Tensor, b: Tensor, size: float = 3e-5) -> None:
    torch.testing.assert_close(a, b, rtol=size, atol=size)


def loaded(f: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    g = copy.deepcopy(f)
    g.load_state_dict(state)
    return g


# Rows [t, *shape] that break sums, signs and scales.
_rng = torch.Generator().manual_seed(3)
_rank1 = torch.outer(torch.randn(3, generator=_rng), torch.randn(24, generator=_rng)).view(3, 4, 6)
_plain = torch.randn(4, 5, 7, generator=_rng)
_odd = _plain.clone()
_odd[1] = 0
ROWS = {
    "plain": _plain,
    "one row": _plain[:1],
    "vectors": _plain[:, 0],
    "single numbers": _plain[:, 0, :1],
    "all zero": torch.zeros(3, 4, 6),
    "one row zero": _odd,
    "rank one": _rank1,
    "opposed": torch.stack([_plain[0], -_plain[0]]),
    "equal": _plain[:1].expand(3, -1, -1),
    "tiny": 1e-10 * _plain,
    "huge": 1e10 * _plain,
    "both": _plain * torch.tensor([1e-10, 1.0, 1e10, 1e5]).view(4, 1, 1),
    "whole numbers": (3 * _plain).round(),
    "many": torch.randn(40, 6, generator=_rng),
}
