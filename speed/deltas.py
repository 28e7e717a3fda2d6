"""Which delta for what: size, training speed, overhead and scores of every delta in the folder, on one budget.

    python speed/deltas.py [--rows 16,128,1000] [--tasks 8,4,4] [--steps 16] [--seeds 0] [--only lora,offset] [--out FILE]

Every delta has its own settings and places, in the last two blocks of MiniLM (those at the embeddings: there, and then all
of f is trained through). Each task trains its own slot and head from the same probe, alone, and takes the same rows and
passes under every delta: as many passes as make about --steps steps of up to 32 rows, at least one. Numbers that all slots
have in common are learned by all tasks together before, in as many passes, and then stay.

scores: the tasks' main metric on up to 200 test rows, at each of --rows training rows (a tenth of them for validation) on
the first --tasks tasks that the fewest rows suffice for. rows/s: steps on a fixed batch of 32 rows of four tasks (forward,
backward, Adam; what f computes below the delta is cached) in turn with LoRA's, times LoRA's best rows/s of the whole run.
overhead: 64 rows of 32 tokens, each with a slot of its own as a bundle stores it, against f without deltas on the same rows,
in turn. kilobytes: of a slot in a bundle, without its head.

Real tasks through ANABRANCH_DATA or --data, the docstring suite otherwise. What was measured is kept in the user's cache,
so that a killed run goes on. docs/deltas.md is made of the result by: python -m anabranch.report.deltas
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import _bench as bench

OUT = Path(__file__).resolve().parent.parent / "docs" / "speed" / "deltas.json"
BATCH, LENGTH, STEP = 64, 32, 32  # rows and tokens of the mixed batch; rows of a task in a step
BLOCKS, PACED = 2, 4  # of f that the deltas change; tasks of the batch that training is timed on


@dataclass
class Runs:
    """All that the deltas are measured on; suites are made once."""

    data: Path | None
    home: Path
    sizes: dict[int, list[str]]  # training rows -> tasks
    steps: int
    test: int
    reps: int
    suites: dict[Any, Any] = field(default_factory=dict)
    cpu: float = 0.0  # seconds that all of it took, now or before

    def suite(self, seed: int, rows: int, whole: bool) -> Any:
        from anabranch.engine.lab import Lab

        key = seed, rows, whole
        if key not in self.suites:
            lab = Lab(seed, self.data, self.home / ("whole" if whole else "upper"))  # their probes read other features
            blocks = None if whole else BLOCKS
            self.suites[key] = lab.suite(self.sizes[rows], rows=rows, test=self.test, blocks=blocks)
        return self.suites[key]

    @property
    def middle(self) -> int:
        return sorted(self.sizes)[len(self.sizes) // 2]

    def passes(self, suite: Any) -> int:
        once = median(-(-len(job.parts["train"]) // STEP) for job in suite.jobs.values())
        return max(1, round(self.steps / once))

    def kept(self, what: str, name: str, seed: int, rows: int, measure: Any) -> Any:
        """What ``measure()`` finds, once and for all."""
        from anabranch import __version__
        from anabranch.core.names import make
        from anabranch.engine.cache import digest
        from anabranch.engine.profile import profile
        from anabranch.settings import card

        delta = make("delta", name)
        facts = (card(delta), delta.at, delta.lr, seed, rows, self.sizes[rows], self.steps, self.test, str(self.data))
        path = self.home / "found" / f"{what}-{name}-{digest(*facts, __version__, profile()['dtype'])}.json"
        found, cpu = bench.kept(path, measure)
        self.cpu += cpu
        return found


def tasks_of(data: Path | None, home: Path, most: int, rows: int) -> list[str]:
    """The first tasks of the laboratory whose classes so few rows can show, in training and in validation."""
    from anabranch.engine.lab import CORE, OWN, Lab
    from anabranch.errors import InputError

    lab, out = Lab(0, data, home / "upper"), list[str]()
    root = data or lab.suite_folder()
    for name in CORE if data else OWN:
        try:
            if len(out) < most and (root / name).is_dir():
                out += [task.name for task in lab.tasks([name], rows=rows)]
        except InputError as error:
            bench.told(f"left out: {error}")
    return out


def problem(name: str, suite: Any) -> str:
    """Why a delta cannot be trained alone; empty where it can."""
    from anabranch.engine.passes import seeded

    bank = suite.banks(name)[0][0]
    if any("@" in n for p in bank.fresh(seeded(0)).values() for n in p):
        return "a form in which merges store slots: beside what a merge gives to all of them"
    return ""


def low(name: str, suite: Any) -> bool:
    """Whether it sits below the blocks that the suite may change."""
    return any(site.depth < suite.features.tail for bank in suite.banks(name)[0] for site in bank.sites)


def trained(runs: Runs, name: str, suite: Any) -> Any:
    epochs = runs.passes(suite)
    common = any(bank.tables["shared"].n for bank in suite.banks(name)[0])
    first = suite.shared(name, epochs=epochs).banks if common else ()
    return suite.own(name, epochs=epochs, common=first)


def costs(runs: Runs, name: str, suite: Any) -> dict[str, Any]:
    """Sizes, pace of training, overhead of a mixed batch."""
    from anabranch.core.names import make
    from anabranch.settings import card

    found, delta = trained(runs, name, suite), make("delta", name)
    common = sum(bank.tables["shared"].n for bank in found.banks)
    at = [delta.at] if isinstance(delta.at, str) else list(delta.at)
    return {
        "settings": card(delta)["settings"], "at": at, "door": delta.door, "lr": delta.lr, "numbers": found.numbers,
        "common": common, "kilobytes": found.bytes / 1000, "pace": pace(runs, name, suite),
        "overhead": overhead(found, runs.reps),
    }  # fmt: skip


def pace(runs: Runs, name: str, suite: Any) -> dict[str, Any]:
    """Seconds of a training step over LoRA's on the same rows, in turn; and how long LoRA's took."""
    upper = runs.suite(suite.lab.seed, runs.middle, False)
    (mine, rows), (theirs, _) = stepping(suite, name), stepping(upper, "lora")
    took = bench.alternate({"mine": mine, "lora": theirs}, max(1, runs.reps // 2 + 1), warm=1)
    return bench.ratio(took["mine"], took["lora"]) | {"rows": rows, "lora": min(took["lora"])}


def stepping(suite: Any, name: str) -> tuple[Callable[[], None], int]:
    """Takes one training step on a fixed batch, and its rows."""
    banks, rates = suite.banks(name)
    trainer, some = suite.trainer(banks, rates), list(suite.jobs.items())[:PACED]
    learners = [trainer.learner(job, suite.heads[n], 1, "pace") for n, job in some]
    work = [(learner, list(range(min(STEP, len(learner.job.parts["train"]))))) for learner in learners]
    return lambda: trainer.step(work), sum(len(rows) for _, rows in work)


def overhead(found: Any, reps: int) -> dict[str, Any]:
    """Seconds of a batch whose rows each have a slot of their own over f's."""
    import torch

    from anabranch.core.adapt import Adapted
    from anabranch.core.route import Route
    from anabranch.engine import store
    from anabranch.engine.result import bank_like, frozen_tree

    f, rng = found.suite.f, torch.Generator().manual_seed(0)
    trees = [store.unpack(store.pack(frozen_tree(found.banks, slot), "bf16")) for slot in found.slots]
    banks = [bank_like(bank, i, trees[0]).to(next(f.parameters()).dtype) for i, bank in enumerate(found.banks)]
    for i, bank in enumerate(banks):
        bank.add([store.cut(trees[j % len(trees)], i) for j in range(BATCH)])
    adapted, route = Adapted(f, banks), Route.to(list(range(1, BATCH + 1)))
    ids = torch.randint(1000, 30000, (BATCH, LENGTH), generator=rng)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        took = bench.alternate({"mixed": lambda: adapted(inputs, route), "f": lambda: f(**inputs)}, reps, warm=1)
    return bench.ratio(took["mixed"], took["f"]) | {"ms": round(1000 * min(took["mixed"]), 1)}


def score(runs: Runs, name: str, seed: int, rows: int, whole: bool) -> dict[str, float]:
    """Test scores of the tasks."""
    kept: dict[str, float] = runs.kept(
        "scores", name, seed, rows, lambda: trained(runs, name, runs.suite(seed, rows, whole)).scores()
    )
    return kept


def measured(runs: Runs, name: str, seeds: list[int]) -> dict[str, Any]:
    """All about one delta."""
    first = runs.suite(seeds[0], runs.middle, False)
    if why := problem(name, first):
        return {"skipped": why}
    whole = low(name, first)
    middle = runs.middle
    out = runs.kept("costs", name, seeds[0], middle, lambda: costs(runs, name, runs.suite(seeds[0], middle, whole)))
    scores: dict[str, Any] = {}
    for rows in runs.sizes:
        cells = [score(runs, name, seed, rows, whole) for seed in seeds]
        scores[str(rows)] = {n: [cell[n] for cell in cells] for n in cells[0]}
    for place in runs.home.glob("*/train"):  # a dense slot's states are large
        shutil.rmtree(place, ignore_errors=True)
    return out | {"through_all_of_f": whole, "scores": scores}


def told(runs: Runs, names: list[str], seeds: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    from anabranch.errors import InputError

    for i, name in enumerate(names, 1):
        begun = time.process_time()
        try:
            found = measured(runs, name, seeds)
        except InputError as error:
            found = {"skipped": str(error)}
        means = {n: sum(map(sum, s.values())) / len(s) / len(seeds) for n, s in found.get("scores", {}).items()}
        what = found.get("skipped") or ", ".join(f"{n} rows {mean:.3f}" for n, mean in means.items())
        bench.told(f"{i}/{len(names)} {name}: {what} ({time.process_time() - begun:.0f} CPU s)")
        yield name, found


def main() -> None:
    ask = bench.arguments(__doc__, data=True)
    ask.add_argument("--rows", type=bench.numbers, default=[16, 128, 1000], help="training rows a task, ascending")
    ask.add_argument("--tasks", type=bench.numbers, default=[8, 4, 4], help="how many tasks at each of --rows, or one number")
    ask.add_argument("--steps", type=int, default=16)
    ask.add_argument("--seeds", type=bench.numbers, default=[0])
    ask.add_argument("--test", type=int, default=200, help="test rows a task, at most")
    ask.add_argument("--reps", type=int, default=5, help="of the overhead; of the pace half as many")
    ask.add_argument("--only", default="", help="a few deltas, by name")
    ask.add_argument("--out", type=Path, default=OUT)
    a = ask.parse_args()
    from anabranch.core.names import every
    from anabranch.engine.cache import cache_dir

    begun, names = time.process_time(), a.only.split(",") if a.only else every("delta")
    tasks = a.tasks * len(a.rows) if len(a.tasks) == 1 else a.tasks
    data, home = a.data if a.data.is_dir() else None, cache_dir() / "lab-deltas"
    known = tasks_of(data, home, max(tasks), min(a.rows))
    runs = Runs(data, home, {n: known[:t] for n, t in zip(a.rows, tasks, strict=True)}, a.steps, a.test, a.reps)
    facts = bench.machine("transformers")
    suites = {rows: runs.suite(a.seeds[0], rows, False) for rows in a.rows}
    bench.told(f"{len(names)} deltas on {', '.join(known)} ({time.process_time() - begun:.0f} CPU s so far)")
    deltas = dict(told(runs, names, a.seeds))
    best = max((d["pace"]["rows"] / d["pace"]["lora"] for d in deltas.values() if "pace" in d), default=0.0)
    for d in deltas.values():
        d |= {"rows_per_second": round(best / d["pace"]["median"], 1)} if "pace" in d else {}
    probes = {rows: [runs.suite(seed, rows, False).probe() for seed in a.seeds] for rows in a.rows}
    backbone = suites[a.rows[0]].features.backbone
    found = {
        "what": "deltas", "machine": facts, "load_after": os.getloadavg()[0], "data": "real tasks" if data else "docstring suite",
        "seeds": a.seeds, "steps": a.steps, "blocks": BLOCKS, "backbone": backbone.id, "dtype": str(backbone.dtype)[6:],
        "backbone_blocks": backbone.blocks, "test_rows": a.test, "batch": BATCH, "length": LENGTH,
        "passes": {rows: runs.passes(suite) for rows, suite in suites.items()},
        "tasks": {rows: list(suite.jobs) for rows, suite in suites.items()},
        "probe": {rows: {n: [one[n] for one in each] for n in each[0]} for rows, each in probes.items()},
        "deltas": {n: d for n, d in deltas.items() if "skipped" not in d},
        "skipped": {n: d["skipped"] for n, d in deltas.items() if "skipped" in d},
        "cpu_seconds": round(runs.cpu),
    }  # fmt: skip
    rows = [[n, d["numbers"], d["kilobytes"], d["rows_per_second"], d["overhead"]["median"],
             *[sum(map(sum, s.values())) / len(s) / len(a.seeds) for s in d["scores"].values()]]
            for n, d in found["deltas"].items()]  # fmt: skip
    print()
    bench.table(["delta", "numbers", "kB a task", "rows/s", "mixed / f", *[f"{n} rows" for n in a.rows]], rows)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
