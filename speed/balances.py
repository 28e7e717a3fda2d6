"""Which balance for what: scores, time and memory of every balance, the folder's and TorchJD's, on the same tasks.

    python speed/balances.py [--tasks 8,16] [--rows 128] [--epochs 3] [--only equal,upgrad] [--limit 75] [--minutes 20] [--out]

One LoRA in the last two blocks of MiniLM that all tasks train together, and a head for each task that starts from the same
probe; every balance has its own settings. A share is a task's score over that of a LoRA trained on it alone in as many passes;
tasks whose own score is not above 0 have none. ``--rows`` rows a task, a tenth for validation; up to ``--test`` test rows.

cpu and megabytes: of the whole training. ratio: CPU seconds of a step of up to eight tasks over one of equal, in turn; for
those that train several times, of the whole training over that of equal, one after the other.

Real tasks through ANABRANCH_DATA or --data, the docstring suite otherwise. What was measured is kept in the user's cache, so
that a killed run goes on. docs/balancing.md shows the result: python -m anabranch.report.overview
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import _bench as bench

OUT = Path(__file__).resolve().parent.parent / "docs" / "speed" / "balances.json"
DELTA, PLAIN, STEPS = "lora", "equal", 2  # steps that are timed
SETTINGS = {"cagrad": {"c": 0.5}, "fair_grad": {"alpha": 1.0}}  # what TorchJD has no value for


@dataclass
class Runs:
    """All that the balances are measured on."""

    data: Path | None
    rows: int
    test: int
    epochs: int
    home: Path
    until: float  # of time.monotonic(), nothing new is begun later
    suites: Callable[[int, int], Any] = field(init=False)

    def __post_init__(self) -> None:
        self.suites = cache(self.suite)

    def suite(self, size: int, seed: int) -> Any:
        from anabranch.engine.lab import Lab

        return Lab(seed, self.data).suite(size, rows=self.rows, test=self.test)

    def cell(self, name: str, size: int, seed: int) -> tuple[dict[str, Any], float]:
        from anabranch.core.names import find
        from anabranch.errors import InputError
        from anabranch.settings import settings_of

        needs = [n for n, p in settings_of(find(f"balance.{name}")).items() if p.default is p.empty]
        if missing := [n for n in needs if n not in SETTINGS.get(name, {})]:
            raise InputError(f"has no value of its own for {', '.join(missing)}")
        facts = (size, seed, self.rows, self.test, self.epochs, str(self.data))
        path = self.home / bench.named("balance", name, spec_of(name), *facts)
        return bench.kept(path, lambda: self.measured(name, size, seed), self.until)

    def measured(self, name: str, size: int, seed: int) -> dict[str, Any]:
        from anabranch.claims._balance import seconds
        from anabranch.engine.balanced import beside
        from anabranch.engine.share import balancer
        from anabranch.report.overview import form_of

        suite, spec = self.suites(size, seed), spec_of(name)
        if form_of("balance", name) == "train":
            plain = self.trained(PLAIN, suite)[0]["cpu"]
            cost, found = self.trained(spec, suite)
            return cost | {"ratio": cost["cpu"] / plain, "scores": found.scores()}
        few = suite.only(*list(suite.jobs)[: beside(balancer(spec)).together])  # of more tasks, steps are of these
        path = self.home / "steps" / bench.named("balance", name, spec, list(few.jobs), seed, self.rows, STEPS, str(self.data))
        step, _ = bench.kept(path, lambda: seconds(few, DELTA, {"plain": PLAIN, "mine": spec}, STEPS))
        cost, found = self.trained(spec, suite)
        return cost | {"ratio": step["mine"] / step["plain"], "scores": found.scores()}

    def trained(self, spec: Any, suite: Any) -> tuple[dict[str, float], Any]:
        """On a disk that knows nothing of it."""
        with tempfile.TemporaryDirectory() as temp:
            apart = replace(suite, lab=replace(suite.lab, home=Path(temp)))
            return bench.cost(lambda: apart.shared(DELTA, balance=spec, epochs=self.epochs))


def spec_of(name: str) -> Any:
    return {name: SETTINGS[name]} if name in SETTINGS else name


def every_balance() -> list[str]:
    """The folder's and TorchJD's, each by one name; those of several trainings last."""
    from anabranch import balance
    from anabranch.core.names import every
    from anabranch.report.overview import form_of

    own, kinds = every("balance"), dict[Any, str]()
    for name, load in balance.beyond().items():
        kinds.setdefault(load.args[1], name)
    found = [PLAIN, *(n for n in own if n != PLAIN), *(n for n in kinds.values() if n not in own)]
    return sorted(found, key=lambda name: form_of("balance", name) == "train")


def main() -> None:
    ask = bench.sided(__doc__, OUT)
    ask.add_argument("--rows", type=int, default=128, help="training rows a task")
    ask.add_argument("--test", type=int, default=200, help="test rows a task, at most")
    ask.add_argument("--epochs", type=int, default=3)
    a = ask.parse_args()
    from anabranch.engine.cache import cache_dir
    from anabranch.engine.lab import BLOCKS
    from anabranch.report.overview import standing

    until = time.monotonic() + 60 * a.minutes
    runs = Runs(a.data if a.data.is_dir() else None, a.rows, a.test, a.epochs, cache_dir() / "lab-balances", until)
    facts = bench.machine("transformers", "torchjd")
    suites = {size: [runs.suites(size, seed) for seed in a.seeds] for size in a.tasks}
    single = {size: [one.own(DELTA, epochs=a.epochs).scores() for one in each] for size, each in suites.items()}
    probe = {size: [one.probe() for one in each] for size, each in suites.items()}
    bench.told(f"the slots of {max(a.tasks)} tasks alone are there")
    found = bench.side_by_side(a.only.split(",") if a.only else every_balance(), a.tasks, a.seeds, a.limit, runs.cell)
    backbone = suites[a.tasks[0]][0].features.backbone
    found = {
        "what": "balances", "machine": facts, "load_after": os.getloadavg()[0], "seeds": a.seeds, "rows": a.rows,
        "test_rows": a.test, "epochs": a.epochs, "settings": SETTINGS, "delta": DELTA,
        "data": "real tasks" if runs.data else "docstring suite",
        "backbone": backbone.id, "dtype": str(backbone.dtype)[6:], "blocks": BLOCKS, "backbone_blocks": backbone.blocks,
        "tasks": {str(size): list(each[0]) for size, each in single.items()},
        "single": {str(size): bench.by_task(each) for size, each in single.items()},
        "untrained": {str(size): bench.by_task(each) for size, each in probe.items()}, **found,
    }  # fmt: skip
    bench.shown(found, standing, a.out)


if __name__ == "__main__":
    main()
