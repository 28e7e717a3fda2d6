"""A sparse change of one per cent of the query and value weights of the last two blocks: its mask grown step by step (ID3)
against as many weights picked once, at the first step, by the same score, and against as many drawn at random; six text tasks
of 512 rows."""

from typing import Any

from anabranch.claims._deltas import one

holds = ("steps > first", "steps > drawn")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(6)
    ways = {way: suite.own({"id3": {"share": 0.01, "mask": mask}})
            for way, mask in (("steps", "steps"), ("first", "first"), ("drawn", "random"))}  # fmt: skip
    changed = {f"{way}_numbers": one(chosen(trained)) for way, trained in ways.items()}
    return {way: trained.scores() for way, trained in ways.items()} | {"probe": suite.probe()} | changed


def chosen(trained: Any) -> float:
    """Weights in a slot's mask, on average over the slots."""
    return sum(int((slot["0.fixed.uint8"] > 0).sum()) for slot in trained.slots) / len(trained.slots)
