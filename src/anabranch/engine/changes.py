"""What models change in one tensor of their base, read from the files piece by piece."""

from collections.abc import Sequence
from concurrent.futures import CancelledError
from math import isfinite
from pathlib import Path
from threading import Event, local

import torch
from torch import Tensor

from anabranch.errors import InputError

CUT = (1 << 15) - 1  # numbers of a tensor worked on at once: they stay in the cache, and torch runs so few on the calling thread
Part = tuple[Path, Tensor]  # a folder, and the tensor in it


class Kept(local):
    """Each thread's memory for the rows of a tensor: what is new is made page by page, which takes as long as the work."""

    room = torch.empty(0)


class Changes:
    """rows [t, *shape], fp32, of which ``rows[a:b, c:d]`` [b - a, d - c] are models a to b and, flat, numbers c to d, in memory
    that the next piece takes. They stand for a tensor where a merge takes pieces only (``pieces`` in its file). ``halt``: ends
    the work at its next piece. InputError: numbers that are not finite."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, name: str, base: Part | None, parts: Sequence[Part], halt: Event) -> None:
        self.name, self.halt, self.room, self.own = name, halt, torch.empty(0), torch.empty(0)
        self.places = [folder for folder, _ in ([base] if base else []) + list(parts)]
        self.base, self.parts = base and base[1].reshape(-1), [t.reshape(-1) for _, t in parts]
        self.shape = torch.Size((len(parts), *(parts[0][1].shape or (1,))))

    def __len__(self) -> int:
        return len(self.parts)

    def reshape(self, *shape: int) -> "Changes":
        return self

    def __getitem__(self, where: tuple[slice, slice]) -> Tensor:
        parts, size = self.parts[where[0]], len(range(*where[1].indices(self.parts[0].numel())))
        if self.room.numel() < len(parts) * size:
            self.room = torch.empty(len(parts) * size)
        rows = self.room[: len(parts) * size].view(-1, size)
        self.fill(rows, parts, where[1])
        return rows

    def all(self, kept: "Kept") -> Tensor:
        """rows [t, *shape], as a tensor, where the thread's next one comes."""
        size = self.shape.numel()
        if kept.room.numel() < size:
            kept.room = torch.empty(size)
        rows = kept.room[:size].view(len(self.parts), -1)
        for at in range(0, rows.shape[1], CUT):
            self.fill(rows[:, at : at + CUT], self.parts, slice(at, at + CUT))
        return rows.view(self.shape)

    def fill(self, rows: Tensor, parts: Sequence[Tensor], at: slice) -> None:
        if self.halt.is_set():
            raise CancelledError
        own = None if self.base is None else self.started(at)
        for row, part in zip(rows, parts, strict=True):
            row.copy_(part[at])
            if own is not None:
                row.sub_(own)
        if not isfinite(sum(float(row.sum()) for row in rows)):
            for folder, t in zip(self.places, [self.base, *self.parts] if self.base is not None else self.parts, strict=True):
                if not torch.isfinite(t[at].float()).all():
                    raise InputError(f"{folder}: {self.name} holds NaN or infinity; a merge of it would be worthless")

    def started(self, at: slice) -> Tensor:
        """The base's numbers, fp32, in memory that the next call takes."""
        assert self.base is not None
        part = self.base[at]
        if self.own.numel() < len(part):
            self.own = torch.empty(len(part))
        return self.own[: len(part)].copy_(part)

    def settle(self, d: Tensor, out: Tensor, at: int) -> None:
        """d [m] onto the base, as ``out`` [m] of the result's dtype."""
        if self.base is not None:
            d = d.add_(self.started(slice(at, at + len(d))))
        out.copy_(d)
        low, high = torch.aminmax(d)
        if not torch.finfo(out.dtype).min <= float(low) <= float(high) <= torch.finfo(out.dtype).max:
            raise InputError(f"{self.name}: the merge leaves the range of {str(out.dtype)[6:]}; take a smaller scale, or float32")
