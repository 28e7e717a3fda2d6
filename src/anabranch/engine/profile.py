"""What this machine does well, measured once and kept in the user's cache: which type to compute in, and how fast."""

import os
import platform
import time
from contextlib import suppress
from typing import Any

import torch

from anabranch.engine.cache import cache_dir, digest, read_sealed, sealed, write_json
from anabranch.errors import WorkError

FASTER = 1.3  # bf16 is taken from this ratio on; below it fp32's extra digits are free


def profile() -> dict[str, Any]:
    """``{"dtype": "bfloat16" | "float32", "gigaflops": of a matrix product in it, "threads"}``."""
    here = {
        "torch": torch.__version__,
        "machine": platform.processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    path = cache_dir() / f"profile-{digest(here)}.json"
    try:
        return read_sealed(path)
    except (OSError, WorkError):
        pass
    speed = {str(t)[6:]: _gigaflops(t) for t in (torch.float32, torch.bfloat16)}
    dtype = "bfloat16" if speed["bfloat16"] > FASTER * speed["float32"] else "float32"
    found = here | {"dtype": dtype, "gigaflops": round(speed[dtype], 1)}
    with suppress(WorkError):  # a cache that cannot be written only costs the measurement next time
        write_json(path, sealed(found))
    return found


def _gigaflops(dtype: torch.dtype, n: int = 1024) -> float:
    a, b, best = torch.ones(n, n, dtype=dtype), torch.ones(n, n, dtype=dtype), float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def seconds(tokens: float, blocks: float, d: int, machine: dict[str, Any], passes: float = 1.0) -> float:
    """Rough time of forward passes (a backward counts one more) over ``blocks`` blocks of width d: half of the peak rate."""
    return passes * tokens * blocks * 24 * d * d / (machine["gigaflops"] * 1e9 * 0.5)
