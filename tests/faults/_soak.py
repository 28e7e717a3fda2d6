"""How much the tests of this folder do: a little in CI, and all of it with ANABRANCH_SOAK=1 (make soak); 0.05 is a twentieth."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

SOAK = float(os.environ.get("ANABRANCH_SOAK", 0))

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="forks a process that holds torch")


def times(few: int, many: int) -> int:
    return max(few, round(SOAK * many))


def fuzz(few: int, many: int = 10_000) -> Any:
    """Settings of a property test. In CI the same examples each time; in a long run others each time."""
    found = times(few, many)
    return hypothesis.settings(
        max_examples=found,
        derandomize=not SOAK,
        deadline=None,
        print_blob=bool(SOAK),
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@contextmanager
def within(seconds: float = 30.0) -> Iterator[None]:
    """A hang is a failure that shows where it hangs."""

    def late(*_: Any) -> None:
        raise AssertionError(f"took more than {seconds:g} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flat(work: Callable[[int], Any], few: int, many: int = 10_000, room: float = 12e6) -> None:
    """Fails if memory grows by more than ``room`` bytes over that many rounds of ``work``, which first runs warm."""
    rounds = times(few, many)
    for i in range(max(20, rounds // 4)):
        work(i)
    before = resident()
    for i in range(rounds):
        work(i)
    grown = resident() - before
    assert grown < room, f"{grown / 1e6:.1f} MB more after {rounds} rounds"


# ---- other processes


def powerless() -> None:
    """From now on file modes hold for this process, root or not."""
    if os.geteuid():
        return
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def forked(work: Callable[[], Any], said: Path, seconds: float = 300.0) -> int | None:
    """Exit code of ``work`` in another process, which is killed after ``seconds``; what it writes to stderr is in ``said``."""

    def run() -> None:
        with open(said, "wb", 0) as out:
            os.dup2(out.fileno(), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - pytest's own catches it otherwise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        work()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks while there are threads; those here are idle
        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode
