"""A results dict as a markdown page: what docs/results/ shows is generated from the JSON beside it."""

from typing import Any


def page(results: dict[str, Any]) -> str:
    """The table of all tasks: TEST scores of every rung in the task's main metric, and what was chosen on validation."""
    machine, stages = results["machine"], results["stages"]
    limit = f" at most {results['limit']} training rows a task (validation included)," if "limit" in results else ""
    lines = [
        "# Results on real tasks",
        "",
        "Generated from the JSON of the same name; do not edit.",
        "",
        f"Backbone {results['backbone']} in {results['dtype']}, one run over {len(results['tasks'])} tasks,{limit} seed"
        f" {results['seed']}, {results['seconds']:.0f} s on {machine['cpus']} cores"
        f" ({', '.join(f'{n} {s:.0f}' for n, s in stages.items())}). Columns are test scores; the rung was chosen on validation.",
        "",
        "| task | kind | metric | train / valid / test | majority | probe | shared | delta | chosen | valid | test | kB | note |",
        "|---|---|---|---|---:|---:|---:|---:|---|---:|---:|---:|---|",
    ]
    for name, t in results["tasks"].items():
        note = f"BM25 {t['bm25']:.3f}" if t.get("bm25") is not None else ""
        rungs = " | ".join(_number(t[k]) for k in ("majority", "probe", "shared", "delta"))
        sizes = f"{t['n_train']} / {t['n_valid']} / {t['n_test']}"
        lines.append(
            f"| {name} | {t['kind']} | {t['metric']} | {sizes} | {rungs} | {t['chosen']} | {_number(t['valid'])}"
            f" | {_number(t['test'])} | {t['kilobytes']:.0f} | {note} |"
        )
    versions = ", ".join(f"{n} {v}" for n, v in results["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}. One seed: differences of a few points are within noise.", ""])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
