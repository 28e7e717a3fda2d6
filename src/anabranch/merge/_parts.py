"""What merges are made of: which numbers of a task vector stay (``trim``, ``drop``), which sign wins (``agree``), how whole
directions fit together (``directions``, ``polar``). Rows are [t, n] here; ``sweep`` brings tensors of any shape to them."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anabranch.errors import InputError

# Numbers of all tasks together that one pass works on: what is made of them stays in the cache, and operations so small run
# on the calling thread, where waking others costs more than it saves. Several tensors at once are the way to use more cores.
CHUNK = (1 << 15) - 1
Draws = Sequence[np.random.Generator]


def sweep(rows: Tensor, per: Callable[[Tensor], Tensor]) -> Tensor:
    """rows [t, *shape] -> [*shape]: ``per`` makes [t, m] numbers [m], cut by cut, in order."""
    flat = rows.reshape(len(rows), -1)
    out = torch.empty_like(flat[0])
    step = max(256, CHUNK // len(flat))
    for start in range(0, len(out), step):
        out[start : start + step] = per(flat[:, start : start + step])
    return out.view(rows.shape[1:])


def ranked(rows: Tensor, *counts: int) -> list[Tensor]:
    """rows [t, *shape], counts in [1, n] -> per count the so-many-th largest magnitude of each task, [t, 1]."""
    flat = rows.detach().reshape(len(rows), -1)
    at = [flat.shape[1] - c for c in counts]
    if flat.device.type != "cpu":
        return [flat.abs().kthvalue(i + 1, dim=1, keepdim=True).values for i in at]
    edges = np.empty((len(at), len(flat), 1), np.float32)
    size = np.empty_like(flat[0].numpy())  # one task's magnitudes at a time: memory that is warm, and no more of it
    for j, row in enumerate(flat.numpy()):
        np.abs(row, out=size)
        start = 0
        for i in sorted(at):  # numpy selects ten times faster than kthvalue, but only one place at a time
            size[start:].partition(i - start)
            start = i
        edges[:, j, 0] = size[at]
    return list(torch.from_numpy(edges).to(flat))


def keep(share: float, n: int) -> int:
    """How many of n numbers a share is: rounded down, at least one."""
    return max(1, int(share * n))


def trim(rows: Tensor, edge: Tensor) -> Tensor:
    """[t, n] with 0 where the magnitude is below edge [t, 1]; of equal numbers at the edge all stay."""
    return rows.abs().ge_(edge).mul_(rows)


def draws(t: int, site: Any, seed: int) -> Draws:
    """A stream of random numbers for each task, from the seed, the site's name and the task's place."""
    name = zlib.crc32(f"{seed} {getattr(site, 'key', site) or ''}".encode())
    return [np.random.Generator(np.random.SFC64([name, j])) for j in range(t)]


def drop(rows: Tensor, share: Tensor | float, streams: Draws) -> Tensor:
    """[t, n]: each number stays with probability ``share`` (of all, or [t, n]), divided by it, else becomes 0."""
    u = np.empty(rows.shape, np.float32)
    for stream, row in zip(streams, u, strict=True):
        stream.random(out=row, dtype=np.float32)
    return torch.from_numpy(u).to(rows.device).lt_(share).mul_(rows).div_(share)


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
