"""Claims: what a method and its baselines reach, per seed, against what the row says: held, not held, inconclusive.

``claims/<row_id>.py`` holds ``claim(lab) -> {way: {case: number}}`` and ``holds``, comparisons such as ``"ours > theirs"``,
``"ours >= theirs - 0.01"`` or ``"cost <= 0.2"``. Each is judged on the differences, paired over cases and seeds, by the 95 %
interval of Student's t for their mean: held when the whole interval is on the claimed side, not held when it is on the other.
"""

import ast
import hashlib
import importlib
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from anabranch import __version__
from anabranch.atlas.rows import row, rows
from anabranch.atlas.status import HOME, claim_of
from anabranch.engine.cache import cache_dir, read_sealed, sealed, write_json
from anabranch.errors import InputError, WorkError, nearest

CLAIMS = HOME / "claims"
Numbers = dict[str, dict[str, float]]  # way -> case -> number
COMPARISON = re.compile(r"([a-z]\w*)\s*(>=|<=|>|<)\s*([a-z]\w*)?\s*(?:([+-])?\s*(\d*\.?\d+))?$")
TEST = "Student's t for the mean of paired differences over cases and seeds, 95 %"


def ids_of(id: str | None, family: str | None) -> list[str]:
    """The claims that are asked for; InputError when there is none."""
    if id:
        if not id.startswith("baseline-") and claim_of(row(id).id) is None or claim_of(id) is None:
            raise InputError(f"{id} has no claim yet{nearest(id, [p.stem.replace('_', '-') for p in CLAIMS.glob('[!_]*.py')])}")
        return [id]
    if not family:
        raise InputError("name a claim, or a family: anabranch claim task-arithmetic, anabranch claim --family merge")
    found = [r.id for r in rows() if r.family == family and claim_of(r.id)]
    if not found:
        raise InputError(f"no claim in family {family!r}")
    return found


def run(id: str, seeds: int = 3, data: Path | None = None, jobs: int = 1, fresh: bool = False,
        told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:  # fmt: skip
    """Measures what is not yet on disk, seed by seed, and judges. ``data``: a folder of tasks, else the docstring suite."""
    if seeds < 1:
        raise InputError(f"--seeds is at least 1, got {seeds}")
    if data is not None and not Path(data).is_dir():
        raise InputError(f"--data is a folder of task folders, there is no {data}")
    path = claim_of(id)
    assert path is not None
    place = cache_dir() / "claims" / id / _key(path, data)
    found: dict[int, dict[str, Any]] = {}
    for seed in range(seeds):
        try:
            found[seed] = {} if fresh else read_sealed(place / f"{seed}.json")
        except FileNotFoundError:
            found[seed] = {}
        except WorkError as error:
            told(f"{error}: measured again")
            found[seed] = {}
    todo = [seed for seed in range(seeds) if "numbers" not in found[seed]]
    for seed, measured in _measured(id, todo, data, jobs):
        write_json(place / f"{seed}.json", sealed(measured))
        found[seed] = measured
        told(f"{id}, seed {seed}: {measured['seconds']:.0f} s")
    return judged(id, [found[seed] for seed in range(seeds)], data)


def module_of(id: str) -> Any:
    return importlib.import_module(f"anabranch.claims.{id.replace('-', '_')}")


def said_of(id: str) -> tuple[tuple[str, ...], str]:
    """A claim's comparisons and its docstring, read from its file, which is not imported."""
    path = claim_of(id)
    assert path is not None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = [n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "holds"]
    return ast.literal_eval(named[0].value), " ".join((ast.get_docstring(tree) or "").split())


def _key(path: Path, data: Path | None) -> str:
    """Of the claim's own text and what claims share, this version, and the data's extent."""
    texts = [p.read_text(encoding="utf-8") for p in (path, *sorted(path.parent.glob("_*.py")))]
    said = [*texts, __version__, str(data and sorted(p.name for p in Path(data).iterdir()))]
    return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]


def _measured(id: str, seeds: Sequence[int], data: Path | None, jobs: int) -> Any:
    if jobs == 1 or len(seeds) < 2:
        for seed in seeds:
            yield seed, measure(id, seed, data)
        return
    with ProcessPoolExecutor(min(jobs, len(seeds)), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(measure, id, seed, data, 1): seed for seed in seeds}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def measure(id: str, seed: int, data: Path | None, threads: int | None = None) -> dict[str, Any]:
    """One seed: ``{"seed", "numbers", "seconds", "cpu"}``; seconds of the clock and of the processor, assets included."""
    import torch

    from anabranch.engine.lab import Lab

    if threads:
        torch.set_num_threads(threads)
    begun, cpu = time.perf_counter(), time.process_time()
    numbers = module_of(id).claim(Lab(seed, data))
    for way, cases in numbers.items():
        bad = [case for case, value in cases.items() if not math.isfinite(value)]
        if bad:
            raise WorkError(f"claim {id}, seed {seed}: {way} of {bad[0]} is {cases[bad[0]]}")
    return {"seed": seed, "numbers": numbers, "seconds": round(time.perf_counter() - begun, 1),
            "cpu": round(time.process_time() - cpu, 1)}  # fmt: skip


def judged(id: str, found: Sequence[Mapping[str, Any]], data: Path | None) -> dict[str, Any]:
    """The verdict's document from the numbers of all seeds."""
    holds, note = said_of(id)
    numbers: list[Numbers] = [entry["numbers"] for entry in found]
    compared = [compare(text, numbers) for text in holds]
    said = [c["verdict"] for c in compared]
    verdict = "held" if set(said) == {"held"} else "not held" if "not held" in said else "inconclusive"
    return {
        "id": id, "verdict": verdict, "comparisons": compared, "test": TEST,
        "numbers": {way: summary([n[way] for n in numbers]) for way in numbers[0]},
        "seeds": [entry["seed"] for entry in found], "data": "real tasks" if data else "docstring suite",
        "note": note,
        "seconds": [entry["seconds"] for entry in found], "cpu": [entry["cpu"] for entry in found],
        "versions": {p: version(p) for p in ("torch", "transformers")} | {"anabranch": __version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cpus", "python": platform.python_version(),
    }  # fmt: skip


def compare(text: str, numbers: Sequence[Numbers]) -> dict[str, Any]:
    """One comparison, judged: ``{"claim", "mean", "interval", "pairs", "verdict"}`` of the side's excess over the other."""
    found = COMPARISON.match(text.strip())
    if not found or not (found[3] or found[5]):
        raise WorkError(f"a comparison is 'ours > theirs', 'ours >= theirs - 0.01' or 'cost <= 0.2', got {text!r}")
    left, sign, right, plus, margin = found.groups()
    shift = (-1 if plus == "-" else 1) * float(margin or 0)
    excess = []
    for seed in numbers:
        for way in (left, right):
            if way and way not in seed:
                raise WorkError(f"{text!r} names {way!r}, measured are {', '.join(seed)}")
        cases = [c for c in seed[left] if right is None or c in seed[right]]
        excess += [seed[left][c] - (seed[right][c] if right else 0.0) - shift for c in cases]
    mean, (low, high) = interval(excess)
    up = sign.startswith(">")
    below, above = (low, high) if up else (-high, -low)
    strict = len(sign) == 1
    held = below > 0 if strict else below >= 0
    lost = above <= 0 if strict else above < 0
    return {"claim": text, "mean": round(mean, 6), "interval": [round(low, 6), round(high, 6)], "pairs": len(excess),
            "verdict": "held" if held else "not held" if lost else "inconclusive"}  # fmt: skip


def interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The mean and its 95 % interval; of one value, the value itself."""
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, (mean, mean)
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def summary(seeds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Of one way: the mean over cases with its interval over cases and seeds, each seed's mean, each case's mean."""
    mean, spread = interval([v for seed in seeds for v in seed.values()])
    cases = {c: round(statistics.fmean([s[c] for s in seeds if c in s]), 4) for c in seeds[0]}
    return {"mean": round(mean, 5), "interval": [round(v, 5) for v in spread],
            "seeds": [round(statistics.fmean(s.values()), 5) for s in seeds], "cases": cases}  # fmt: skip


def publish(verdict: Mapping[str, Any], folder: Path = CLAIMS / "verdicts") -> Path:
    """Writes a verdict where the catalogue reads it: package data of a source checkout."""
    return write_json(folder / f"{verdict['id']}.json", json.loads(json.dumps(verdict)))
