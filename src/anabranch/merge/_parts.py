"""What merges are made of: which numbers of a task vector stay (``trim``, ``drop``), which sign wins (``agree``), how whole
directions fit together (``directions``, ``polar``). Rows are [t, n] here; ``sweep`` brings tensors of any shape to them."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anabranch.errors import InputError

# Numbers that one operation works on: what is made of them stays in the cache, and operations so small run on the calling
# thread, where waking others costs more than it saves. Several tensors at once are the way to use more cores.
CHUNK = (1 << 15) - 1


@torch.no_grad()
def sweep(rows: Tensor, per: Callable[[Tensor], Tensor], cut: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """rows [t, *shape] -> [*shape]: ``per`` makes [t, m] numbers [m], piece by piece, in order. ``cut``, if given, first puts
    what stays of a piece into the memory [t, m] beside it: new memory for each piece would take longer than the work."""
    t, n, flat = len(rows), rows.shape[1:].numel(), rows.reshape(len(rows), -1)
    out = torch.empty(n, dtype=rows.dtype, device=rows.device)
    step = max(256, CHUNK // t)
    room = torch.empty(t, min(step, n), dtype=rows.dtype, device=rows.device)
    for at in range(0, n, t * step):  # t rows of so many are read at once, and worked on in pieces of as many in all
        wide = flat[:, at : at + t * step]
        for d, made in zip(wide.split(step, 1), out[at : at + t * step].split(step), strict=True):
            made.copy_(per(cut(d, room[:, : len(made)]) if cut else d))
    return out.view(rows.shape[1:])


@torch.no_grad()
def ranked(rows: Tensor, *counts: int | Sequence[int]) -> list[Tensor]:
    """rows [t, *shape], counts in [1, n], of all tasks or of each -> per count the so-many-th largest magnitudes, [t, 1]."""
    t, n, flat = len(rows), rows.shape[1:].numel(), rows.reshape(len(rows), -1)
    places = [[n - int(c) for c in np.broadcast_to(count, t)] for count in counts]
    if rows.device.type != "cpu":
        return [torch.stack([r.abs().kthvalue(i + 1).values[None] for r, i in zip(flat, at, strict=True)]) for at in places]
    edges = np.empty((len(counts), t, 1), np.float32)
    size = np.empty_like(flat[0].numpy())  # one task's magnitudes at a time: memory that is warm, and no more of it
    for j, row in enumerate(flat.numpy()):
        np.abs(row, out=size)
        start = 0
        # numpy selects ten times faster than kthvalue, but only one place at a time; the next moves what stands behind the last
        for i, c in sorted((at[j], c) for c, at in enumerate(places)):
            size[start:].partition(i - start)
            edges[c, j], start = size[i], i
    return list(torch.from_numpy(edges).to(flat))


def keep(share: float, n: int) -> int:
    """How many of n numbers a share is: rounded down, at least one."""
    return max(1, int(share * n))


def trim(rows: Tensor, edge: Tensor, out: Tensor | None = None) -> Tensor:
    """[t, n] with 0 where the magnitude is below edge [t, 1]; of equal numbers at the edge all stay."""
    return torch.abs(rows, out=out).ge_(edge).mul_(rows)


class Draws:
    """A stream of random numbers for each task, and memory for those in use."""

    def __init__(self, streams: Sequence[np.random.Generator]) -> None:
        self.streams, self.room = streams, np.empty(0, np.float32)

    def __call__(self, m: int) -> Tensor:
        """[t, m] in [0, 1), where the next call puts its own."""
        size = len(self.streams) * m
        if self.room.size < size:
            self.room = np.empty(size, np.float32)
        u = self.room[:size].reshape(-1, m)
        for stream, row in zip(self.streams, u, strict=True):
            stream.random(out=row, dtype=np.float32)
        return torch.from_numpy(u)


def draws(t: int, site: Any, seed: int) -> Draws:
    """A stream of random numbers for each task, from the seed, the site's name and the task's place."""
    name = zlib.crc32(f"{seed} {getattr(site, 'key', site) or ''}".encode())
    return Draws([np.random.Generator(np.random.SFC64([name, j])) for j in range(t)])


def drop(rows: Tensor, share: Tensor | float, drawn: Draws) -> Tensor:
    """[t, n]: each number stays with probability ``share`` (of all, or [t, n]), divided by it, else becomes 0."""
    return thin(rows, share, drawn).div_(share)


def thin(rows: Tensor, share: Tensor | float, drawn: Draws) -> Tensor:
    """[t, n]: each number stays with probability ``share``, else becomes 0; in memory that the next draw takes."""
    return drawn(rows.shape[1]).to(rows.device).lt_(share).mul_(rows)


def agree(kept: Tensor) -> Tensor:
    """[t, n] -> [n]: the mean of the numbers whose sign is the sign of the sum, 0 where there are none. ``kept`` is used up."""
    sign = kept.sum(0).sign_()
    kept.mul_(sign).clamp_(min=0)
    total = kept.sum(0).mul_(sign)
    return total.div_(kept.sign_().sum(0).clamp_(min=1))


def directions(rows: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """rows [t, o, i] -> the ``size`` strongest singular directions of each: u [t, o, size], s [t, size], v [t, i, size].

    A direction that a task does not have (its singular value is rounding) comes as zeros.
    """
    if rows.shape[1] < rows.shape[2]:  # LAPACK takes tall matrices in half the time
        v, s, u = directions(rows.mT, size)
        return u, s, v
    u, s, vh = torch.linalg.svd(rows, full_matrices=False)
    s = s[:, :size] * (s[:, :size] > 1e-5 * s[:, :1])
    return u[..., :size] * (s > 0)[:, None], s, vh[:, :size].mT * (s > 0)[:, None]


def polar(x: Tensor) -> Tensor:
    """[a, k] -> the nearest [a, k] with orthonormal columns; columns that depend on others share their directions."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return (u * (s > 1e-4 * s[:1])) @ vh


def statistic(whole: Mapping[str, Any] | None, name: str, site: Any) -> Tensor | None:
    """``whole[name]`` of this site, [t, ...], None where the site has none. InputError when no statistics were collected."""
    if whole is None or name not in whole:
        raise InputError(f"this merge weighs by data and needs whole[{name!r}] = {{site key: [t, ...]}}, got none")
    found: Tensor | None = whole[name].get(getattr(site, "key", site))
    return found
