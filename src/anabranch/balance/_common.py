"""What balancers share: what they keep between steps, and another balancer inside.

A state is a dict of numbers, lists of numbers and tensors (never nested): numbers fit a JSON note, tensors safetensors. What
belongs to one task has the key ``kind:task``, so tasks may come and go between steps. None is the state before the first step.
"""

import inspect
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from anabranch.core.balance import Balancer, Point, lift
from anabranch.core.names import make
from anabranch.errors import InputError, WorkError

State = Mapping[str, Any] | None


def gradients(point: Point) -> Tensor:
    """[r, n] at theta; WorkError names the rows that are not finite."""
    grads, _ = lift(lambda rows: rows)(None, point)
    assert grads is not None
    return grads


def recall(state: State, kind: str, names: Sequence[str], start: float | Tensor = 0.0) -> Tensor:
    """[t] or [t, n]: what the state keeps of each task, ``start`` for a task that it has not met."""
    return torch.stack([torch.as_tensor((state or {}).get(f"{kind}:{name}", start)) for name in names])


def keep(kind: str, names: Sequence[str], values: Tensor) -> dict[str, Any]:
    """values [t] as numbers, [t, n] as tensors; :func:`recall` is the inverse."""
    return {f"{kind}:{name}": value if value.ndim else value.item() for name, value in zip(names, values, strict=True)}


def adam(state: State, names: Sequence[str], grad: Tensor, lr: float, decay: float = 0.0) -> tuple[Tensor, dict[str, Any]]:
    """One step (Kingma and Ba 2015, arXiv:1412.6980) on a number w per task, which starts at 0: (w [t], state)."""
    w, m, v, step = (recall(state, kind, names) for kind in ("w", "m", "v", "step"))
    step, grad = step + 1, grad + decay * w
    m, v = m.lerp(grad, 0.1), v.lerp(grad.square(), 0.001)
    w = w - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    kept = {"w": w, "m": m, "v": v, "step": step}
    return w, {n: t for kind, values in kept.items() for n, t in keep(kind, names, values).items()}


def positive(point: Point, floor: float = 0.0) -> Tensor:
    """Losses [r] of at least ``floor``, which methods with logarithms need."""
    losses = point.losses(point.theta).detach().float()
    for wrong, what in ((~losses.isfinite(), "is not finite"), (losses < floor, f"is below {floor:g}; its logarithm is needed")):
        if wrong.any():
            names = [name for name, w in zip(point.names, wrong, strict=True) if w]
            raise WorkError(f"the loss of {', '.join(names)} {what}")
    return losses


def draw(state: State, seed: int, like: str, *shape: int) -> tuple[Tensor, dict[str, Any]]:
    """Normal numbers of this call, from the seed and the number of calls before: a resumed run draws the same."""
    calls = int((state or {}).get("calls", 0))
    rng = Generator().manual_seed(zlib.crc32(f"{like} {seed} {calls}".encode()))
    return torch.randn(*shape, generator=rng), {"calls": calls + 1}


def inner(spec: Any) -> Balancer:
    """A balancer from a plan's words, an aggregator lifted to one."""
    method = make("balance", spec)
    first = next(iter(inspect.signature(method).parameters))
    if first == "train":
        raise InputError(f"{spec!r} trains several times, so it cannot be used inside another balancer")
    return method if first == "state" else lift(method)


def linear(spec: Any) -> bool:
    """Whether a balancer is a constant weighted sum of the rows, as its file promises: A(G) = A(I) G."""
    method = make("balance", spec)
    return "linear" in vars(sys.modules[getattr(method, "__wrapped__", method).__module__]).get("promises", ())


def within(spec: Any, state: State, place: str, point: Point) -> tuple[Tensor | None, dict[str, Any]]:
    """One step of an inner balancer, whose state lives under ``place/``."""
    held = {key.removeprefix(f"{place}/"): value for key, value in (state or {}).items() if key.startswith(f"{place}/")}
    direction, new = inner(spec)(held.get("", held) or None, point)
    return direction, {f"{place}/{k}": v for k, v in (new if isinstance(new, dict) else {"": new}).items()}
