"""A library of LoRAs, each trained alone on one of twelve text tasks, and four other tasks: Arrow (top 4, by token and layer,
without training) against the uniform average of the library's changes. Nothing of the library or of the routing learns from
the four; as their labels are new, each gets a linear head from 256 labelled rows, fitted anew for every way. Changes sit at
the queries and values of the last two blocks."""

from typing import Any

holds = ("arrow > uniform",)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    tasks = lab.tasks(16)
    library = lab.suite(tasks[:-4]).own("lora")
    held = lab.suite(lab.tasks([task.name for task in tasks[-4:]], rows=256))
    ways = {"arrow": {"arrow": {"top": 4}}, "uniform": "fixed", "nearest": {"keyed": {"top": 1}}, "factors": "mhr_mu"}
    return {way: refitted(held, library, gate) for way, gate in ways.items()} | {"probe": held.probe()}


def refitted(held: Any, library: Any, gate: Any) -> dict[str, float]:
    """Scores of linear heads on features through the library."""
    routed = held.over(library, gate, learn=False)
    banks = routed.filled()
    views = {name: routed.view(name, banks) for name in held.jobs}
    heads = held.refit(views.__getitem__)
    return {name: held.score(name, view, heads[name]) for name, view in views.items()}
