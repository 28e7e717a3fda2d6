"""What the scripts of this folder share: data, interleaved timing, facts about the machine, a table, one JSON line."""

import argparse
import ctypes
import inspect
import json
import math
import os
import platform
import random
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from gzip import open as unzip
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# before transformers and tokenizers are imported, and inherited by child processes
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error"
)
warnings.filterwarnings("ignore")  # the peers' own
COSTS = ("ratio", "cpu", "megabytes", "kilobytes")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "text"


def arguments(doc: str | None, data: bool = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        parser.add_argument("--data", type=Path, default=Path(os.environ.get("ANABRANCH_DATA", DATA)), help="task folders")
    return parser


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def present(root: Path, tasks: Sequence[str]) -> None:
    """Ends the script, not in error, where its data is absent."""
    absent = [name for name in tasks if not (root / name / "train.jsonl.gz").is_file()]
    if absent:
        print(f"skipped: no {', '.join(absent)} in {root}; set ANABRANCH_DATA or --data")
        sys.exit(0)


def sample(rows: Sequence[Any], n: int, seed: int) -> list[Any]:
    """The first n of a seeded shuffle, the same choice as in the peers' own measurements."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[i] for i in order[:n]]


def cut(root: Path, into: Path, name: str, train: int, test: int, seed: int) -> Path:
    """A task folder of ``train`` rows (by ``seed``) and ``test`` rows (always the same) of the task ``root/name``."""
    folder = into / name
    folder.mkdir(parents=True)
    for split, n, by in (("train", train, seed), ("test", test, 0)):
        with unzip(root / name / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = sample(list(file), n, by)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "task.json").write_text((root / name / "task.json").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def alternate(ways: Mapping[str, Callable[[], Any]], reps: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each way, one after another in every repetition, so that a slow moment meets all of them alike."""
    for work in list(ways.values()) * warm:
        work()
    out: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(reps):
        for name in list(ways) if i % 2 else list(ways)[::-1]:
            out[name].append(timed(ways[name])[0])
    return out


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Of paired seconds: the median and quartiles of the pairs' ratios, and the ratio of the two least (least disturbed)."""
    each = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
    return {"least": round(min(ours) / min(theirs), 3), "median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


@contextmanager
def peak(every: float = 0.02) -> Iterator[list[int]]:
    """``[bytes]``: the most anonymous memory seen while the block runs."""
    most, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(every):
            most[0] = max(most[0], anonymous())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def cost(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds of the clock and of the processor, megabytes of anonymous memory above the state before at most; and the result."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
    before, cpu = anonymous(), time.process_time()
    with peak(0.005) as most:
        seconds, found = timed(work)
        most[0] = max(most[0], anonymous())
    return {"seconds": seconds, "cpu": time.process_time() - cpu, "megabytes": (most[0] - before) / 1e6}, found


def kept(path: Path, measure: Callable[[], Any], until: float = math.inf) -> tuple[Any, float]:
    """What ``measure()`` finds, once and for all, and the processor's seconds that it took then; it starts before ``until``."""
    from anabranch.engine.cache import read_json, write_json
    from anabranch.errors import InputError

    if not path.exists() and time.monotonic() > until:
        raise InputError("not reached within the minutes given")
    if not path.exists():
        begun = time.process_time()
        write_json(path, {"found": measure(), "cpu": time.process_time() - begun})
    read = read_json(path)
    return read["found"], read["cpu"]


def sided(doc: str | None, out: Path) -> argparse.ArgumentParser:
    """The arguments of scripts that measure all methods of a family side by side."""
    ask = arguments(doc, data=True)
    ask.add_argument("--tasks", type=numbers, default=[8, 16])
    ask.add_argument("--seeds", type=numbers, default=[0])
    ask.add_argument("--only", default="", help="a few methods, by name")
    ask.add_argument("--limit", type=float, default=75, help="CPU seconds above which more tasks are left out")
    ask.add_argument("--minutes", type=float, default=math.inf, help="after which nothing new is begun")
    ask.add_argument("--out", type=Path, nargs="?", const=out, help="a JSON file for the result, without a name docs/speed/...")
    return ask


def named(family: str, name: str, spec: Any, *facts: Any) -> str:
    """A file's name for what is measured of a method, under these facts and in this version of its file."""
    from anabranch import __version__
    from anabranch.core.names import find, make
    from anabranch.engine.cache import digest
    from anabranch.engine.profile import profile
    from anabranch.settings import card

    text = inspect.getsource(inspect.getmodule(find(f"{family}.{name}")) or find)
    return f"{name}-{digest(card(make(family, spec)), text, __version__, profile()['dtype'], *facts)}.json"


def side_by_side(
    names: Sequence[str], sizes: Sequence[int], seeds: Sequence[int], limit: float,
    measure: Callable[[str, int, int], tuple[dict[str, Any], float]],
) -> dict[str, Any]:  # fmt: skip
    """Every method at every number of tasks: scores of each task by seed, and medians of what it cost.

    ``measure(name, size, seed)``: {"scores": {task: score}, ...}, with CPU seconds that it took, now or before.
    """
    from anabranch.errors import InputError

    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    skipped, total = dict[str, str](), 0.0
    for seed, size in [(seed, size) for seed in seeds for size in sorted(sizes)]:
        for i, name in enumerate(names, 1):
            less = [cell for n in sorted(sizes) if n < size for cell in cells.get((name, n), [])]
            if name in skipped or f"{name} with {size} tasks" in skipped:
                continue
            if less and less[-1]["cpu"] > limit:
                skipped[f"{name} with {size} tasks"] = f"takes {less[-1]['cpu']:.0f} CPU seconds with fewer"
                continue
            try:
                cell, cpu = measure(name, size, seed)
            except InputError as error:
                skipped[name if size == min(sizes) else f"{name} with {size} tasks"] = str(error)
                told(f"{i}/{len(names)} {name}: {error}")
                continue
            cells.setdefault((name, size), []).append(cell)
            total += cpu
            mean, took = statistics.fmean(cell["scores"].values()), f"{cell['cpu']:.1f} of {cpu:.0f} CPU s"
            told(f"{i}/{len(names)} {name}, {size} tasks, seed {seed}: mean score {mean:.4f}, {took}")
    methods: dict[str, Any] = {}
    for (name, size), found in cells.items():
        trees = {k for k, v in found[0].items() if isinstance(v, dict)}
        scores = {k: {t: [round(cell[k][t], 5) for cell in found] for t in found[0][k]} for k in trees}
        costs = {k: round(statistics.median(cell[k] for cell in found), 4) for k in found[0].keys() - trees}
        methods.setdefault(name, {})[str(size)] = scores | dict(sorted(costs.items()))
    return {"methods": methods, "skipped": skipped, "cpu_seconds": round(total)}


def by_task(seeds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {task: [round(one[task], 5) for one in seeds] for task in seeds[0]}


def sides(found: Mapping[str, Any], standing: Callable[[Any, Any], tuple[float, float]]) -> None:
    """Prints what :func:`side_by_side` found; the highest mean share at the fewest tasks first."""
    rows, sizes = {}, list(found["single"])
    for name, cells in found["methods"].items():
        costs = cells[list(cells)[-1]]
        row = [standing(cells[n]["scores"], found["single"][n]) if n in cells else (None, None) for n in sizes]
        more = [standing(cells[n]["scaled"], found["single"][n])[0] if "scaled" in cells.get(n, {}) else None for n in sizes]
        rows[name] = [x for pair in row for x in pair] + more + [costs.get(k) for k in COSTS]
    head = [f"{what} {n}" for n in sizes for what in ("mean", "worst")] + [f"scaled {n}" for n in sizes] + list(COSTS)
    order = sorted(rows, key=lambda n: -(rows[n][0] or 0.0))
    there = [i for i in range(len(head)) if any(row[i] is not None for row in rows.values())]
    table(["method", *(head[i] for i in there)], [[n, *(rows[n][i] for i in there)] for n in order])
    for name, why in found["skipped"].items():
        print(f"{name}: {why}")


def shown(found: Mapping[str, Any], standing: Callable[[Any, Any], tuple[float, float]], out: Path | None) -> None:
    """Prints a table and one JSON line, which ``out`` keeps."""
    print()
    sides(found, standing)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(json.dumps(found))


def machine(*packages: str) -> dict[str, Any]:
    """What ran where, how busy it was, and the ceiling: GFLOP/s of a 1024^3 product in both types, at best."""
    import torch

    ceiling = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(1024, 1024, dtype=dtype)
        ceiling[str(dtype)[6:]] = round(2 * 1024**3 / min(timed(lambda a=a: a @ a)[0] for _ in range(20)) / 1e9)
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "cpu": names[0].partition(": ")[2] if names else platform.processor(), "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(), "load": [round(x, 2) for x in os.getloadavg()], "gigaflops": ceiling,
        "python": platform.python_version(), "versions": {p: versioned(p) for p in ("anabranch", "torch", *packages)},
    }  # fmt: skip


def versioned(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = [[f"{c:.4g}" if isinstance(c, float) else "" if c is None else str(c) for c in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    for row in text:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))


def told(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}, load {os.getloadavg()[0]:.1f}] {line}", flush=True)


def emit(what: str, **facts: Any) -> None:
    print(json.dumps({"what": what} | facts), flush=True)
