"""What the scripts of this folder share: data, interleaved timing, facts about the machine, a table, one JSON line."""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from gzip import open as unzip
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# before transformers and tokenizers are imported, and inherited by child processes
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error"
)
warnings.filterwarnings("ignore")  # the peers' own
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
