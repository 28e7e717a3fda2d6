"""A linear head on f's own features against the best constant answer of each task."""

from typing import Any

from anabranch.engine.linear import majority

holds = ("probe > majority + 0.2",)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8)
    return {"probe": suite.probe(), "majority": {name: majority(job, job.parts["test"]) for name, job in suite.jobs.items()}}
