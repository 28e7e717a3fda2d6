"""A small run that nothing disturbed, and ways to make others of its plan in processes that may be disturbed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import _tiny as tiny

from anabranch import cli
from anabranch.engine import store

NAMES = ("classify", "tag", "retrieve")
STEPS = 4


def typed(*words: object) -> Callable[[], Any]:
    """``anabranch WORDS``, in few steps."""

    def work() -> None:
        with tiny.quick(STEPS):
            cli.main([str(w) for w in words])

    return work


def sums(run: Path) -> dict[str, str]:
    """Checksums of the bundle's files, by name."""
    return {name: store.digest(data) for name, data in tiny.files(run / "bundle").items()}


def said(place: Path) -> str:
    return (place / "said").read_text(errors="replace")


def refused(text: str, *words: str) -> bool:
    """Whether this is one line on stderr, in words."""
    lines = [line for line in text.splitlines() if line]
    return len(lines) == 1 and lines[0].startswith("error: ") and all(w in lines[0] for w in words)
