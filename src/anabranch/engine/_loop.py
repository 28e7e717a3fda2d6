"""The loop that trains the laboratory's small assets: one thread, one optimiser, one schedule."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def alone(seed: int) -> Iterator[None]:
    """One thread and a random state of its own, so that neither the caller's threads nor its draws change a bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def train(f: nn.Module, batches: Iterable[tuple[Any, ...]], loss: Callable[..., Tensor], steps: int, lr: float) -> float:
    """AdamW, a warm-up of a twentieth, then down to nothing along a cosine; returns the mean loss of the last twentieth."""
    optimiser = torch.optim.AdamW(f.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    warm, losses = max(1, steps // 20), list[float]()
    for step, batch in zip(range(steps), batches, strict=False):
        rate = lr * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = rate
        value = loss(*batch)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(f.parameters(), 1.0)
        optimiser.step()
        losses.append(float(value.detach()))
    last = losses[-warm:]
    return sum(last) / len(last)


def drawn(rows: Tensor, size: int, rng: torch.Generator) -> Iterator[tuple[Tensor]]:
    """Batches [size, l] without end, each pass in a new order."""
    while True:
        for part in torch.randperm(len(rows), generator=rng).split(size):
            yield (rows[part],)
