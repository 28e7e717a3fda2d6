"""f with its tokenizer: loading by name, folder or hub id; texts to tokens; tokens to features."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import isdir  # which says no to a name that is too long, where a Path raises OSError
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from anabranch.core.names import every, find
from anabranch.core.site import blocks, clone, width
from anabranch.engine.cache import checksum, read_json
from anabranch.errors import InputError, WorkError, nearest
from anabranch.task.kind._base import Unit

LONGEST = 128  # tokens of a text that are read, unless its task has a max_length
STEP = 8  # a row is padded to the next multiple of this of its own length, and shares a batch only with that length


class Tokens(NamedTuple):
    ids: tuple[int, ...]
    starts: tuple[int, ...] = ()  # position of each word's first token, for units of words
    cut: bool = False  # whether the text was longer than f reads


@dataclass(frozen=True)
class Backbone:
    """``pool``: how a text's vector comes from its tokens (mean, cls, last); ``unit``: whether it is scaled to length 1.

    ``longest``: tokens that f can read at most.
    """

    id: str
    f: nn.Module
    tokenizer: Any
    pool: str
    longest: int
    causal: bool
    folder: str = ""
    unit: bool = True

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all weights, in the type in which they are loaded."""
        return checksum(self.f.state_dict())

    @cached_property
    def lower(self) -> dict[int, Any]:
        """What runs f up to a block, by its number: kept by :mod:`anabranch.engine.features`."""
        return {}

    @property
    def d(self) -> int:
        return width(self.f)

    @property
    def blocks(self) -> int:
        return len(blocks(self.f)[1])

    @property
    def dtype(self) -> torch.dtype:
        return next(self.f.parameters()).dtype

    def tokens(self, units: Sequence[Unit], longest: int | None = None) -> list[Tokens]:
        """Token ids of texts or of lists of words, cut to ``longest`` tokens (128); empty texts keep their special tokens."""
        if not units:
            return []
        limit, words = min(longest or LONGEST, self.longest), not isinstance(units[0], str)
        plain = [u[: 40 * limit] if isinstance(u, str) else [w[:200] for w in u] or [""] for u in units]
        out = self.tokenizer(plain, truncation=True, max_length=limit, is_split_into_words=words, return_attention_mask=False)
        full = len(max(plain, key=len)) > limit  # only then can anything have been cut
        rows = []
        for i, ids in enumerate(out["input_ids"]):
            starts: dict[int, int] = {}
            for at, word in enumerate(out.word_ids(i)) if words else ():
                if word is not None:
                    starts.setdefault(word, at)
            reach = min(len(units[i]), max(starts, default=-1) + 1)  # a word without tokens of its own reads position 0
            cut = len(units[i]) > reach if words else full and len(ids) == limit
            rows.append(Tokens(tuple(ids) or (self.pad,), tuple(starts.get(w, 0) for w in range(reach)), cut))
        return rows

    def spoken(self, texts: Sequence[str], said: Sequence[str | None], longest: int | None = None) -> list[Tokens]:
        """Tokens of a text and of what f is to say after it, which ends with the end token; ``starts`` is where that begins.

        A text that leaves no room for the answer loses its beginning. Without an answer (None) there is the text only.
        """
        if not texts:
            return []
        limit, end = min(longest or LONGEST, self.longest), self.tokenizer.eos_token_id
        asked = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        told = self.tokenizer([s or "" for s in said], add_special_tokens=False)["input_ids"]
        rows = []
        for a, t, s in zip(asked, told, said, strict=True):
            rest = [] if s is None else [*t[: limit // 2], end]
            front = (a or [end])[-(limit - max(len(rest), limit // 4)) :]
            rows.append(Tokens((*front, *rest), (len(front),), len(front) < len(a)))
        return rows

    @property
    def pad(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def inputs(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Token ids of one bucket -> input_ids, attention_mask [b, l], l the next multiple of 8."""
        length = bucket(max(map(len, rows)))
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[b, l, d] -> [b, d] in fp32."""
        h, m = hidden.float(), mask.float()
        if self.pool == "cls":
            z = h[:, 0]
        elif self.pool == "last":
            z = h[torch.arange(len(h)), mask.sum(1) - 1]
        else:
            z = torch.einsum("bld,bl->bd", h, m) / m.sum(1, keepdim=True)
        return torch.nn.functional.normalize(z, dim=-1) if self.unit else z


def bucket(length: int) -> int:
    return -(-length // STEP) * STEP


def load(name: str = "minilm", dtype: torch.dtype | None = None) -> Backbone:
    """By the name of a method in ``backbone/``, a local folder, or a hub id that is already in the local hub cache."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf

    folder = str(find(f"backbone.{name}")()) if name.replace("-", "_") in every("backbone") else name
    local = isdir(folder)
    hf.disable_progress_bar()
    level = hf.get_verbosity()
    hf.set_verbosity(logging.ERROR)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=local)
        causal = any("CausalLM" in a or "LMHead" in a for a in getattr(config, "architectures", None) or ())
        build = AutoModelForCausalLM if causal else AutoModel
        how = {"attn_implementation": "eager", "dtype": dtype or torch.float32, "use_safetensors": True}  # never a pickle
        f = build.from_pretrained(folder, local_files_only=local, **how)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=local)
    except (OSError, ValueError) as error:
        hint = nearest(name, every("backbone"))
        raise InputError(
            f"no backbone {name!r}{hint}, or pass a folder with config.json, weights and tokenizer, or a hub id ({_first(error)})"
        ) from None
    except SafetensorError as error:
        raise WorkError(f"the weights of backbone {name} are damaged ({error}): fetch them again") from None
    finally:
        hf.set_verbosity(level)
    if isinstance(getattr(f, "pooler", None), nn.Module):
        f.pooler = None  # nothing here reads it, and it takes f's first token, which may be a soft one
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    longest = min(positions, tokenizer.model_max_length)  # RoBERTa has two positions more than it can use
    return Backbone(name, f.eval(), tokenizer, _pool(Path(folder), causal), longest, causal, folder)


def _pool(folder: Path, causal: bool) -> str:
    """As a sentence-transformers folder declares it; else the last token of a causal model, the mean of others."""
    declared = folder / "1_Pooling" / "config.json"
    if declared.is_file():
        config: Mapping[str, Any] = read_json(declared)
        return next(
            (p for p, key in (("cls", "pooling_mode_cls_token"), ("last", "pooling_mode_lasttoken")) if config.get(key)), "mean"
        )
    return "last" if causal else "mean"


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


def twin(backbone: Backbone) -> Backbone:
    """The same weights behind hooks and a tokenizer of their own, for another thread."""
    other = replace(backbone, f=clone(backbone.f), tokenizer=copy.deepcopy(backbone.tokenizer))
    vars(other)["fingerprint"] = backbone.fingerprint  # that of fp32, whatever the type is now
    return other


_BACKBONES: dict[tuple[str, str], Backbone] = {}


def backbone_of(name: str, dtype: str) -> Backbone:
    """Loaded once per process and type; the fingerprint is taken in fp32."""
    key = (name, dtype)
    if key not in _BACKBONES:
        backbone = load(name)
        _ = backbone.fingerprint
        backbone.f.to(getattr(torch, dtype))
        _BACKBONES[key] = backbone
    return _BACKBONES[key]
