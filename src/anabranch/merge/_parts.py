"""What merges are made of: which numbers of a task vector stay (``trim``, ``drop``), which sign wins (``agree``), how whole
directions fit together (``directions``, ``polar``). Rows are [t, n] here; ``sweep`` brings tensors of any shape to them."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anabranch.errors import InputError

# Numbers that one operation works on: what is made of them stays in the cache, and operations so small run on the calling
# thread, where waking others costs more than it saves. Several tensors at once are the way to use more cores; a thread alone
# wakes none and takes so many times as much, which calls fewer operations. Pieces are of whole LANES, in which torch adds up:
# so their size changes no bit.
CHUNK, ALONE, LANES = (1 << 15) - 1, 4, 128
GRID = 1 << 16  # values of a random number: shares are rounded to one of so many


@torch.no_grad()
def sweep(rows: Tensor, per: Callable[[Tensor], Tensor], cut: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """rows [t, *shape] -> [*shape]: ``per`` makes [t, m] numbers [m], piece by piece, in order. ``cut``, if given, first puts
    what stays of a piece into the memory [t, m] beside it: new memory for each piece would take longer than the work."""
    t, n, flat = len(rows), rows.shape[1:].numel(), rows.reshape(len(rows), -1)
    out = torch.empty(n, dtype=rows.dtype, device=rows.device)
    step = max(2 * LANES, CHUNK * (ALONE if torch.get_num_threads() == 1 else 1) // t // LANES * LANES)
    read = max(1, CHUNK // step) * step  # columns that are read at once, and worked on in pieces
    room = torch.empty(t, min(step, n), dtype=rows.dtype, device=rows.device)
    for at in range(0, n, read):
        wide = flat[:, at : at + read]
        for d, made in zip(wide.split(step, 1), out[at : at + read].split(step), strict=True):
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


class Stream:
    """Random numbers of 16 bits: four of each word, in whichever pieces they are asked for. ``seed``: whole numbers."""

    def __init__(self, seed: Sequence[int]) -> None:
        self.source, self.rest = np.random.SFC64(seed), np.empty(0, np.int16)

    def __call__(self, m: int) -> NDArray[np.int16]:
        """The next m."""
        words: NDArray[np.uint64] = self.source.random_raw(-(-max(0, m - len(self.rest)) // 4))
        found = np.concatenate([self.rest, words.view(np.int16)]) if len(self.rest) else words.view(np.int16)
        self.rest = found[m:].copy()
        return found[:m]


class Draws:
    """A stream of random numbers for each task, and memory for what is made of them."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams, self.below, self.room = streams, np.empty(0, bool), np.empty(0, np.float32)
        self.asked: Tensor | float | None = None  # the share of the last call, and what it comes to

    def __call__(self, m: int, share: Tensor | float) -> Tensor:
        """[t, m]: 1 with probability ``share`` (of all, [t, 1] or [t, m]), :func:`rounded`, else 0; where the next call puts
        its own."""
        t, size = len(self.streams), len(self.streams) * m
        if share is not self.asked:
            self.asked, self.share = share, rounded(share)
            last = np.asarray(self.share * GRID - (GRID // 2 + 1)).astype(np.int16)  # of -32768 ... 32767
            self.last = np.broadcast_to(last, (t, last.shape[-1] if last.ndim else 1))
        if self.room.size < size:
            self.below, self.room = np.empty(size, bool), np.empty(size, np.float32)
        below, made = self.below[:size].reshape(t, m), self.room[:size].reshape(t, m)
        for stream, row, last in zip(self.streams, below, self.last, strict=True):
            np.less_equal(stream(m), last, out=row)
        np.copyto(made, below)
        return torch.from_numpy(made)


def draws(t: int, site: Any, seed: int) -> Draws:
    """A stream of random numbers for each task, from the seed, the site's name and the task's place."""
    name = zlib.crc32(f"{seed} {getattr(site, 'key', site) or ''}".encode())
    return Draws([Stream([name, j]) for j in range(t)])


def rounded(share: Tensor | float) -> Any:
    """The multiple of 1/65536 that is nearest to ``share``, at least one: a number, or of a tensor fp32 on the CPU."""
    if isinstance(share, Tensor):
        return share.float().cpu().mul(GRID).round_().clamp_(min=1).div_(GRID)
    return max(1, round(share * GRID)) / GRID


def drop(rows: Tensor, share: Tensor | float, drawn: Draws) -> Tensor:
    """[t, n]: each number stays with probability ``share`` (of all, [t, 1] or [t, n]), divided by it, else becomes 0; the
    share is :func:`rounded`."""
    kept = thin(rows, share, drawn)
    return kept.div_(drawn.share.to(rows.device) if isinstance(drawn.share, Tensor) else drawn.share)


def thin(rows: Tensor, share: Tensor | float, drawn: Draws) -> Tensor:
    """[t, n]: each number stays with probability ``share``, else becomes 0; in memory that the next draw takes."""
    return drawn(rows.shape[1], share).to(rows.device).mul_(rows)


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
