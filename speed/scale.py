"""What one more task costs: fitting, memory, bytes and answering from 1 task to hundreds.

    python speed/scale.py [--tasks 1,8,64,512] [--rows 8192] [--memory-tasks 64] [--memory-rows 1000] [--bundle 500]

fit: the same rows (of words, in two classes) cut into 1, 8, 64, 512 tasks; 3 passes; milliseconds per row of the whole fit
(also of CPU, which neighbours disturb less) and of its delta stage, and as ratios to one task's. memory: the most anonymous
memory (mapped files excluded) of a fit of 64 tasks of 1,000 rows, in one pass over them. ready: a bundle of 500 tasks, each
with a slot in all blocks, from open to loaded, imports excluded; then 64 rows of 1 task and 64 rows of 64 tasks answered.
Every measurement has its own process.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import _bench as bench

WORDS = [
    "river", "bridge", "stone", "water", "fish", "boat", "sand", "shore", "rain", "cloud", "wind", "leaf", "tree", "bird",
    "nest", "hill", "road", "cart", "horse", "field", "grain", "bread", "table", "engine", "wire", "switch", "lamp", "motor",
    "wheel", "gear", "valve", "pump", "pipe", "steam", "clock", "signal", "cable", "screen", "printer", "disk", "memory",
    "code", "robot", "laser",
]  # fmt: skip
STAGES = ["look", "features", "probe", "delta", "choose"]
EVERYWHERE = [{"lora": {}, "at": ["attention.query", "attention.value"]}]


def row(i: int) -> dict[str, Any]:
    """Ten words; the label, of neighbours in turn, says from which half of the list most of them are."""
    rng, wanted, picked = Random(i), i % 2, list[int]()
    while not picked or int(2 * sum(2 * p < len(WORDS) for p in picked) > len(picked)) != wanted:
        picked = rng.choices(range(len(WORDS)), k=10)
    return {"text": " ".join(WORDS[p] for p in picked), "label": wanted}


def folders(place: Path, tasks: int, each: int, test: int) -> dict[str, Any]:
    for t, (split, n) in product(range(tasks), (("train", each), ("test", test))):
        (place / f"t{t}").mkdir(parents=True, exist_ok=True)
        first = t * n + (10**6 if split == "test" else 0)
        lines = [json.dumps(row(i)) for i in range(first, first + n)]
        (place / f"t{t}" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {f"t{t}": {"data": str(place / f"t{t}"), "kind": "classify"} for t in range(tasks)}


def fitted(place: Path, tasks: int, each: int, test: int, passes: int, delta: Any = "lora") -> dict[str, Any]:
    """Seconds, sizes and memory of one fit."""
    from anabranch.engine import fewshot, run
    from anabranch.engine.fit import fit

    run.EPOCHS, run.STEPS = passes, 1  # small tasks would take more passes than large ones,
    fewshot.MOST = 0  # and be trained in another way
    plan = {"stages": STAGES, "delta": delta, "tasks": folders(place / "data", tasks, each, test)}
    before, cpu = bench.anonymous(), time.process_time()
    with bench.peak() as most:
        seconds, found = bench.timed(lambda: fit(plan, place / "run"))
    cpu = time.process_time() - cpu
    trained = sum(t["n_train"] * len(t["curve"]) for t in found["tasks"].values())
    return {
        "tasks": tasks, "rows": tasks * each, "seconds": round(seconds, 2), "stages": found["stages"], "dtype": found["dtype"],
        "ms_per_row": 1000 * seconds / (tasks * each), "cpu_ms_per_row": 1000 * cpu / (tasks * each),
        "training_ms_per_row": 1000 * found["stages"]["delta"] / trained,
        "seconds_per_task": seconds / tasks, "accuracy": statistics.mean(t["test"] for t in found["tasks"].values()),
        "bytes_per_task": sum(p.stat().st_size for p in (place / "run" / "bundle").iterdir()) // tasks,
        "slot_kilobytes": statistics.mean(t["kilobytes"] for t in found["tasks"].values()),
        "peak_gb": round(most[0] / 1e9, 3), "imports_gb": round(before / 1e9, 3),
    }  # fmt: skip


def bundled(place: Path, n: int) -> None:
    """A bundle of n tasks with a slot and a head each, modelled on one that is fitted."""
    import torch

    from anabranch.engine import store
    from anabranch.engine.backbone import backbone_of

    fitted(place, 1, 64, 16, 1, EVERYWHERE)
    folder, bundle = store.open_bundle(place / "run")
    record = next(iter(bundle["tasks"].values()))
    head, post = store.parts_of(folder, record["file"])[1:3]
    f = backbone_of(bundle["backbone"]["id"], bundle["dtype"]).f
    bank, records = store.bank_of(bundle["banks"][0], f), {}
    for i in range(n):
        rng = torch.Generator().manual_seed(i)
        tree = {
            f"0/{site}": {k: 0.02 * torch.randn(t.shape, generator=rng) for k, t in p.items()}
            for site, p in bank.fresh(rng).items()
        }
        records[f"t{i}"] = store.save_task(folder, record | {"rung": "delta"}, store.pack(tree, "bf16"), head, post)
    store.save(folder, bundle | {"tasks": records})


def ready(place: Path, n: int, reps: int) -> dict[str, Any]:
    """Loads a bundle of n tasks and answers with it."""
    import_module("transformers.models.bert.modeling_bert")
    model_module = import_module("anabranch.engine.model")
    before = bench.anonymous()
    seconds, model = bench.timed(lambda: model_module.load(place / "run"))
    grown = bench.anonymous() - before
    rows = [row(-i) for i in range(64)]
    many = [(model.task(f"t{i % n}"), [r]) for i, r in enumerate(rows)]
    took = bench.alternate({"one": lambda: model.answers([(model.task("t0"), rows)]), "many": lambda: model.answers(many)}, reps)
    ms = {way: 1000 * statistics.median(t) / len(rows) for way, t in took.items()}
    return {
        "tasks": n, "seconds": seconds, "anonymous_mb": grown / 1e6, "ms_per_row_of_1_task": ms["one"],
        f"ms_per_row_of_{min(n, 64)}_tasks": ms["many"], "many/one": bench.ratio(took["many"], took["one"]),
        "bytes_per_task": sum(p.stat().st_size for p in (place / "run" / "bundle").iterdir()) // n,
    }  # fmt: skip


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What ``work`` finds in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def main() -> None:
    ask = bench.arguments(__doc__)
    ask.add_argument("--tasks", type=bench.numbers, default=[1, 8, 64, 512])
    ask.add_argument("--rows", type=int, default=8192, help="of all tasks together")
    ask.add_argument("--reps", type=int, default=1, help="of the fits, in turn")
    ask.add_argument("--memory-tasks", type=int, default=64, help="0: leave the memory part out")
    ask.add_argument("--memory-rows", type=int, default=1000)
    ask.add_argument("--bundle", type=int, default=500, help="tasks; 0: leave the part out")
    a = ask.parse_args()
    facts, fits, memory, loaded = apart(bench.machine, "transformers"), [], None, None
    with tempfile.TemporaryDirectory() as temp:
        for rep, n in product(range(a.reps), a.tasks):
            fits.append(apart(fitted, Path(temp) / f"{rep}-{n}", n, a.rows // n, max(1, a.rows // n // 8), 3))
            bench.told(f"{n} tasks of {a.rows // n} rows: {fits[-1]['seconds']} s")
        if a.memory_tasks:
            memory = apart(fitted, Path(temp) / "memory", a.memory_tasks, a.memory_rows, 50, 1)
            bench.told(f"{a.memory_tasks} tasks of {a.memory_rows} rows: at most {memory['peak_gb']} GB of anonymous memory")
        if a.bundle:
            apart(bundled, Path(temp) / "bundle", a.bundle)
            loaded = apart(ready, Path(temp) / "bundle", a.bundle, 9)
            bench.told(f"a bundle of {a.bundle} tasks: ready in {loaded['seconds']:.2f} s")
    keys = (
        "ms_per_row",
        "cpu_ms_per_row",
        "training_ms_per_row",
        "seconds_per_task",
        "bytes_per_task",
        "slot_kilobytes",
        "peak_gb",
        "accuracy",
    )
    middle = {n: {k: statistics.median(f[k] for f in fits if f["tasks"] == n) for k in keys} for n in a.tasks}
    first = middle[a.tasks[0]]
    ratios = {
        n: {k: round(m[k] / first[k], 3) for k in ("ms_per_row", "cpu_ms_per_row", "training_ms_per_row")}
        for n, m in middle.items()
    }
    print()
    bench.table(
        ["tasks", *keys, "row / first", "cpu / first", "training / first"],
        [[n, *m.values(), *ratios[n].values()] for n, m in middle.items()],
    )
    for part in (memory, loaded):
        if part:
            print()
            bench.table(["", ""], [[k, str(v) if isinstance(v, dict) else v] for k, v in part.items()])
    bench.emit("scale", machine=facts, load_after=os.getloadavg()[0], fits=fits, ratios=ratios, memory=memory, ready=loaded)


if __name__ == "__main__":
    main()
