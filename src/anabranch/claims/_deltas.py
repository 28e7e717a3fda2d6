"""What the claims of deltas share."""

from collections.abc import Mapping
from typing import Any


def best(*ways: Mapping[str, float]) -> Mapping[str, float]:
    """The way with the highest mean over its cases: what a method that must not lose to any of them is held against."""
    return max(ways, key=lambda way: sum(way.values()) / len(way))


def one(value: float) -> dict[str, float]:
    """A number of one slot, as a way of one case."""
    return {"one slot": float(value)}


def two_stages(suite: Any, delta: Any, epochs: int = 2) -> Any:
    """Slots of a delta that has numbers in common: all tasks train one slot and these, then each goes on alone from there."""
    first = suite.shared(delta, epochs=epochs)
    return suite.own(delta, common=first.banks, begin={name: first.slots[0] for name in suite.jobs})
