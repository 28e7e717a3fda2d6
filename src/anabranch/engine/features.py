"""The features stage: frozen f once over every text, kept on disk in chunks of equal length.

Per unit: its vector; per word, for units of words; and what block ``tail`` receives, so that training starts there.
"""

import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anabranch.core.adapt import Adapted
from anabranch.core.site import blocks, capture, clone
from anabranch.engine.backbone import Backbone, Tokens, bucket
from anabranch.engine.cache import digest, recall, write, write_tensors
from anabranch.engine.workers import each

CHUNK = 1024  # units per file, so that a kill loses little
TOKENS = 2048  # of a pass, for each thread in its products; what more tokens take leaves a core's cache (measured)


class _Reached(Exception):
    """Ends a forward pass at the block whose input is wanted."""


class Below(threading.local):
    """f below block ``tail``: inputs -> what that block receives, [b, l, d]. Each thread has a clone, with hooks of its own."""

    def __init__(self, f: nn.Module, tail: int) -> None:  # runs once in every thread
        self.f, self.seen = clone(f), list[Tensor]()
        capture(self.f, tail, self.seen)
        blocks(self.f)[1][tail].register_forward_pre_hook(self.stop)

    def stop(self, *_: Any) -> None:
        raise _Reached

    @torch.no_grad()
    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        with suppress(_Reached):
            self.f(**inputs)
        return self.seen.pop()


def below_of(backbone: Backbone, tail: int) -> Below:
    """Kept with the backbone, for making a clone takes as long as a small batch."""
    if tail not in backbone.lower:
        backbone.lower[tail] = Below(backbone.f, tail)
    return backbone.lower[tail]


class Features:
    """Units are known by their tokens; equal texts of all tasks are one unit."""

    def __init__(self, backbone: Backbone, folder: Path | None, tail: int, disk: float = 8e9) -> None:
        self.backbone, self.folder, self.tail, self.disk = backbone, folder, tail, disk
        self.tokens: list[Tokens] = []
        self.texts: dict[str, list[list[int]]] = {}  # task -> units of each training row
        self.known: dict[Tokens, int] = {}
        self.place: list[tuple[int, int]] = []  # unit -> chunk, row
        self.chunks: list[list[int]] = []
        self.vectors = torch.zeros(0, backbone.d * (2 if tail else 1))  # of f's end, and of its middle where the tail begins
        self.words: list[Tensor] = []
        self._hidden: dict[int, Any] = {}

    def add(self, rows: Sequence[Tokens]) -> list[int]:
        """Numbers of the units with these tokens, new or known."""
        out = []
        for row in rows:
            if row not in self.known:
                self.known[row] = len(self.tokens)
                self.tokens.append(row)
            out.append(self.known[row])
        return out

    def length(self, unit: int) -> int:
        return bucket(len(self.tokens[unit].ids))

    def run(self, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Computes what is not yet on disk and opens the rest."""
        assert self.folder is not None
        new = sorted(range(len(self.place), len(self.tokens)), key=lambda u: (self.length(u), u))
        self.place += [(0, 0)] * len(new)
        self.words += [self.vectors[:0]] * len(new)  # a text without words has none
        grown = torch.zeros(len(self.tokens), self.vectors.shape[1])
        grown[: len(self.vectors)] = self.vectors
        self.vectors = grown
        done, used = 0, sum(p.stat().st_size for p in self.folder.glob("*.npy"))
        todo = []
        for units in self._cut(new):
            name = digest(self.backbone.fingerprint, str(self.backbone.dtype), self.tail, [self.tokens[u] for u in units])
            size = len(units) * self.length(units[0]) * self.backbone.d * self.backbone.dtype.itemsize
            hidden = self.folder / f"{name}.npy"
            keep = self.tail > 0 and (hidden.exists() or used + size <= self.disk)
            used += size * (keep and not hidden.exists())
            todo.append((units, self.folder / f"{name}.safetensors", hidden, keep))
        for (units, _, hidden, _), found in zip(todo, each(todo, lambda part: self._chunk(*part)), strict=True):
            self._take(units, found, hidden)
            done += len(units)
            progress(done, len(new))

    def _chunk(self, units: Sequence[int], path: Path, hidden: Path, keep: bool) -> dict[str, Tensor]:
        """What a chunk's files hold; made anew where they are absent or do not fit each other."""
        kept = recall(path)
        if kept and kept[1].get("hidden") == crc(hidden):
            return kept[0]
        hidden.unlink(missing_ok=True)
        found = self._compute(units, hidden if keep else None)
        write_tensors(path, found, {"hidden": crc(hidden)})
        return found

    def _cut(self, units: Sequence[int]) -> Iterator[list[int]]:
        part: list[int] = []
        for u in units:
            if part and (len(part) == CHUNK or self.length(part[0]) != self.length(u)):
                yield part
                part = []
            part.append(u)
        if part:
            yield part

    @torch.inference_mode()
    def _compute(self, units: Sequence[int], hidden: Path | None) -> dict[str, Tensor]:
        b, seen, parts, vectors, words = self.backbone, [], [], [], []  # type: ignore[var-annotated]
        f = clone(b.f)  # another thread has hooks of its own
        if self.tail:
            capture(f, self.tail, seen)
        for i in range(0, len(units), max(1, TOKENS // self.length(units[0]))):
            batch = units[i : i + max(1, TOKENS // self.length(units[0]))]
            inputs = b.inputs([self.tokens[u].ids for u in batch])
            last = last_hidden(f(**inputs, **more(b)))
            middle = seen.pop() if self.tail else None
            vectors += self.read(batch, last, middle, inputs["attention_mask"], False)
            if any(self.tokens[u].starts for u in batch):
                words += self.read(batch, last, middle, inputs["attention_mask"], True)
            parts += [middle] if hidden and middle is not None else []
        if hidden:
            bits = torch.cat(parts).view(torch.int16 if b.dtype.itemsize == 2 else torch.int32).numpy()
            with_file(hidden, bits)
        return {"vectors": torch.cat(vectors)} | ({"words": torch.cat(words).to(b.dtype)} if words else {})

    def read(self, units: Sequence[int], last: Tensor, middle: Tensor | None, mask: Tensor, words: bool) -> list[Tensor]:
        """Features of each unit, [1, d] or of its words [words, d]; with a middle 2d, the end of f first."""
        hidden = [last] if middle is None else [last, middle]
        if words:
            wide = torch.cat(hidden, -1)
            return [wide[r, list(self.tokens[u].starts)].float() for r, u in enumerate(units)]
        return list(torch.cat([self.backbone.pooled(h, mask) for h in hidden], -1).split(1))

    def _take(self, units: Sequence[int], found: dict[str, Tensor], hidden: Path) -> None:
        chunk = len(self.chunks)
        self.chunks.append(list(units))
        self.vectors[list(units)] = found["vectors"]
        first = 0
        for row, u in enumerate(units):
            self.place[u] = (chunk, row)
            n = len(self.tokens[u].starts)
            if n:
                self.words[u], first = found["words"][first : first + n], first + n
        if hidden.exists():
            self._hidden[chunk] = np.load(hidden, mmap_mode="r")

    def entry(self, units: Sequence[int]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Inputs of f for units of one bucket, and what block ``tail`` receives [b, l, d] (None for tail 0)."""
        inputs = self.backbone.inputs([self.tokens[u].ids for u in units])
        if not self.tail:
            return inputs, None
        if any(u >= len(self.place) or self.place[u][0] not in self._hidden for u in units):
            once = {u: i for i, u in enumerate(dict.fromkeys(units))}  # a text that several tasks ask about runs once below
            below = below_of(self.backbone, self.tail)(self.backbone.inputs([self.tokens[u].ids for u in once]))
            return inputs, below if len(once) == len(units) else below[[once[u] for u in units]]
        rows = np.stack([self._hidden[chunk][row] for chunk, row in (self.place[u] for u in units)])
        return inputs, torch.from_numpy(rows).view(self.backbone.dtype)

    def forward(self, adapted: Adapted, units: Sequence[int], routes: Any, words: bool) -> list[Tensor]:
        """Features (as :meth:`read` gives them) of units of one bucket under ``routes``."""
        inputs, hidden = self.entry(units)
        last = last_hidden(adapted(inputs | more(self.backbone), routes, hidden))
        return self.read(units, last, hidden, inputs["attention_mask"], words)


def last_hidden(out: Any) -> Tensor:
    found = getattr(out, "last_hidden_state", None)
    return out.hidden_states[-1] if found is None else found


def more(b: Backbone) -> dict[str, Any]:
    return {"output_hidden_states": True, "use_cache": False} if b.causal else {}


def crc(path: Path) -> int | None:
    """Of a file; None where there is none, or an empty one."""
    try:
        return zlib.crc32(np.memmap(path, np.uint8, "r").data)
    except (OSError, ValueError):
        return None


def with_file(path: Path, bits: Any) -> None:
    def save(part: Path) -> None:
        with open(part, "wb") as file:  # as np.save does, which keeps to itself why a write failed
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(bits))
            file.write(np.ascontiguousarray(bits).data)

    write(path, save)
