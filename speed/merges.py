"""Which merge for what: scores, time and memory of every merge in the folder on the same fine-tuned models.

    python speed/merges.py [--tasks 8,16] [--seeds 0] [--few 16] [--only ties,tsv] [--limit 75] [--minutes 20] [--out [FILE]]

Each task tunes all of the last two blocks of MiniLM alone, under a frozen head made of its labels' names (512 rows, a tenth of
them for validation; kept on disk, as claims do). Every merge then has its own settings but those of SETTINGS, and where it is
one model for all tasks, ``scaled`` is the same model with its change of f times that of SCALES which is best on up to 32
validation rows a task. Merges with data see ``--few`` of these; all slots of a
recipe that leaves one a task are added up. Scores are on up to 200 test rows.

cpu and megabytes: of the merge alone, from the tuned models in memory; of the most frugal of up to three repetitions. ratio:
its CPU seconds over those of the plain mean, in turn. kilobytes: of what a task adds to a bundle in bf16 (one model: its share).
A share is a task's score over its own model's; tasks whose own score is not above 0 have none.

Real tasks through ANABRANCH_DATA or --data, those of the docstring suite with classes otherwise. What was measured is kept in
the user's cache, so that a killed run goes on. docs/merging.md shows the result: python -m anabranch.report.overview
"""

import inspect
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import _bench as bench

OUT = Path(__file__).resolve().parent.parent / "docs" / "speed" / "merges.json"
TEST, VALID = 200, 32  # rows of a task
SCALES = (0.4, 0.6, 1.0, 1.7, 3.0)
QUICK = 2.0  # CPU seconds below which a merge is repeated
# what dense models ask for; as many rounds as the models' passes; fewer steps where each takes all tasks' rows through f
SETTINGS: dict[str, dict[str, Any]] = {
    "lorahub": {"compose": "products"}, "atm": {"rounds": 3}, "adamerging": {"steps": 60}, "anisotropic": {"steps": 60},
    "self_positioning": {"steps": 40}, "scalearn": {"steps": 40},
}  # fmt: skip


@dataclass
class Runs:
    """All that the merges are measured on."""

    data: Path | None
    few: int
    home: Path
    until: float  # of time.monotonic(), nothing new is begun later
    experts: Callable[[int, int], Any] = field(init=False)

    def __post_init__(self) -> None:
        self.experts = cache(self.tuned)

    def tuned(self, size: int, seed: int) -> Any:
        from anabranch.engine.lab import Lab
        from anabranch.engine.merging import taken

        lab = Lab(seed, self.data)
        experts = lab.experts([task.name for task in lab.tasks(size) if task.kind == "classify"])  # type: ignore[arg-type]
        jobs = {n: replace(job, parts=job.parts | {split: taken(job.parts[split], range(min(most, len(job.parts[split]))))
                                                   for split, most in (("test", TEST), ("valid", VALID))})
                for n, job in experts.suite.jobs.items()}  # fmt: skip
        return replace(experts, suite=replace(experts.suite, jobs=jobs))

    def cell(self, name: str, size: int, seed: int) -> tuple[dict[str, Any], float]:
        from anabranch.core.names import find
        from anabranch.errors import InputError

        takes = getattr(inspect.getmodule(find(f"merge.{name}")), "takes", (1, None))
        if takes[1] and takes[1] < size:
            raise InputError(f"merges {takes[1]} models, no more")
        spec = {name: SETTINGS[name]} if name in SETTINGS else name
        facts = (size, seed, self.few, SCALES, TEST, VALID, str(self.data))
        path = self.home / bench.named("merge", name, spec, *facts)
        return bench.kept(path, lambda: self.measured(name, spec, self.experts(size, seed)), self.until)

    def measured(self, name: str, spec: Any, experts: Any) -> dict[str, Any]:
        from anabranch.claims._merges import stored

        (bank,), costs, plain = experts.filled(), [], []
        merge, mean = self.way(name, spec, experts, bank), self.way("mean", "mean", experts, bank)
        while not costs or (len(costs) < 3 and costs[0]["cpu"] < QUICK):
            plain.append(bench.cost(mean)[0])
            cost, made = bench.cost(merge)
            costs.append(cost)
        beside = sum(2 * t.numel() for p in made.after for t in p.values())  # what corrects features
        kilobytes, made = (stored(made.bank) + beside) / 1000 / len(experts.suite.jobs), summed(made, experts.suite.f)
        best = {k: min(cost[k] for cost in costs) for k in costs[0]}
        out = best | {"ratio": best["cpu"] / min(cost["cpu"] for cost in plain), "scores": experts.under(made)}
        out |= {"kilobytes": kilobytes}
        return out if len(set(made.slots)) > 1 or any(made.after) else out | scaled(experts, made, out["scores"])

    def way(self, name: str, spec: Any, experts: Any, bank: Any) -> Callable[[], Any]:
        """Makes the merge once."""
        from anabranch.engine.merging import merged, one
        from anabranch.report.overview import form_of

        f, jobs, seed = experts.suite.features, experts.suite.jobs, experts.suite.lab.seed
        if form_of("merge", name) == "train":
            return lambda: replace(one(trained(spec, experts), len(jobs)), tangent=name == "tangent")
        (bank,) = (bank,) if name != "genknowsub" else replace(experts, slots=[*experts.slots, general(experts)]).filled()
        return lambda: merged(f, list(jobs.values()), [experts.heads[n] for n in jobs], bank, spec, few=self.few, seed=seed)


def summed(made: Any, f: Any) -> Any:
    """One model for all that has the slots of all tasks, where a recipe leaves them apart to be added up."""
    from anabranch.engine.algebra import dense_bank
    from anabranch.engine.merging import dense, one

    if len(set(made.slots)) > 1 or len(made.bank) == 1:
        return made
    trees = [dense(f, made.bank, j + 1) for j in range(len(made.bank))]
    whole = {site: {n: sum(tree[site][n] for tree in trees) for n in p} for site, p in trees[0].items()}
    return one(dense_bank(made.bank.sites, whole), len(made.slots))


def scaled(experts: Any, made: Any, scores: dict[str, float]) -> dict[str, Any]:
    """Test scores of one model for all tasks at the scale that is best on validation rows."""
    whole, valid = made.bank.tables["own"].data, {}

    def at(scale: float) -> Any:
        bank = replace(made.bank, tables={n: t.copy() for n, t in made.bank.tables.items()})
        bank.tables["own"].data.copy_(scale * whole)
        return replace(made, bank=bank)

    for scale in SCALES:
        valid[scale] = sum(experts.under(at(scale), "valid").values())
    best = max(SCALES, key=lambda scale: valid[scale])
    return {"scaled": scores if best == 1 else experts.under(at(best)), "scale": best}


def trained(spec: Any, experts: Any) -> Any:
    """A merge with training between: on a disk that knows nothing of it."""
    from anabranch.core.adapt import Adapted
    from anabranch.core.names import make

    suite = experts.suite
    with tempfile.TemporaryDirectory() as temp:
        apart = replace(experts, suite=replace(suite, lab=replace(suite.lab, home=Path(temp))))
        return make("merge", spec)(apart.stages(), Adapted(suite.f, []), list(suite.jobs))


def general(experts: Any) -> Any:
    """A slot tuned on texts alone: which of 64 frequent words were taken out."""
    from anabranch.claims._merges import missing_words
    from anabranch.engine.lab import EXPERT

    lab = experts.suite.lab
    task = missing_words(lab, "missing words", lab.tasks(list(experts.suite.jobs)), 512)
    return lab.suite([task]).named().own(EXPERT).slots[0]


def main() -> None:
    ask = bench.sided(__doc__, OUT)
    ask.add_argument("--few", type=int, default=16, help="rows of each task that merges with data see")
    a = ask.parse_args()
    from anabranch.core.names import every
    from anabranch.engine.cache import cache_dir
    from anabranch.engine.lab import BLOCKS, ROWS
    from anabranch.report.overview import KINDS, form_of, standing

    until = time.monotonic() + 60 * a.minutes
    runs = Runs(a.data if a.data.is_dir() else None, a.few, cache_dir() / "lab-merges", until)
    facts = bench.machine("transformers")
    tuned = {size: [runs.experts(size, seed) for seed in a.seeds] for size in a.tasks}
    single = {size: [one.scores() for one in each] for size, each in tuned.items()}
    frozen = {size: [one.suite.probe() for one in each] for size, each in tuned.items()}
    bench.told(f"the models of {max(a.tasks)} tasks are there")
    names = a.only.split(",") if a.only else sorted(every("merge"), key=lambda n: KINDS["merge"].index(form_of("merge", n)))
    found = bench.side_by_side(names, a.tasks, a.seeds, a.limit, runs.cell)
    backbone = tuned[a.tasks[0]][0].suite.features.backbone
    found = {
        "what": "merges", "machine": facts, "load_after": os.getloadavg()[0], "seeds": a.seeds, "few": a.few, "rows": ROWS,
        "test_rows": TEST, "valid_rows": VALID, "data": "real tasks" if runs.data else "docstring suite", "backbone": backbone.id,
        "dtype": str(backbone.dtype)[6:], "blocks": BLOCKS, "backbone_blocks": backbone.blocks, "scales": SCALES,
        "settings": SETTINGS, "tasks": {str(size): list(each[0]) for size, each in single.items()},
        "single": {str(size): bench.by_task(each) for size, each in single.items()},
        "untrained": {str(size): bench.by_task(each) for size, each in frozen.items()}, **found,
    }  # fmt: skip
    bench.shown(found, standing, a.out)


if __name__ == "__main__":
    main()
