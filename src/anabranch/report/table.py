"""What a command found, for a terminal: each function takes the data that ``--json`` prints and gives a rich renderable."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from anabranch.errors import InputError, WorkError

RUNGS = ("majority", "probe", "delta", "shared")
PLACE = ("file", "line", "column")
WIDTH = 16  # of a bar, in characters
SLOTS = 8  # of a gate that have a column each


def read(run: Path) -> dict[str, Any]:
    """The content of RUN/results.json. InputError when there is none, WorkError when it is damaged."""
    from anabranch.engine.cache import read_sealed

    path = run / "results.json"
    if not path.is_file():
        more = f", or finish it: anabranch fit PLAN --out {run} --resume" if (run / "plan.json").is_file() else ""
        raise InputError(f"{run} is not a finished run: no results.json in it; expected the --out of anabranch fit{more}")
    try:
        data = read_sealed(path)
    except WorkError as error:
        raise WorkError(f"{str(error).partition('; ')[0]}: restore it from a copy, or fit again") from None
    if not isinstance(data.get("tasks"), dict):
        raise WorkError(f"{path} is damaged (no tasks): restore it from a copy, or fit again")
    return data


def run(data: Mapping[str, Any], out: Path) -> RenderableType:
    """The results of a run, or of a merge, and where its parts are."""
    places = [("bundle", str(out / "bundle")), ("results", str(out / "results.json"))]
    page = out / "report.html"
    places.append(("report", str(page) if page.is_file() else f"anabranch report {out}"))
    return Group(merged(data) if "mean_merged" in data else results(data), "", facts(dict(places)))


def results(data: Mapping[str, Any]) -> RenderableType:
    """A row per task: test scores of the rungs that were run, the chosen one with a star, what is odd about the data."""
    tasks: Mapping[str, Mapping[str, Any]] = data["tasks"]
    rungs = [r for r in RUNGS if any(t.get(r) is not None for t in tasks.values())]
    rows = []
    for name, t in tasks.items():
        star = {r: Text(f"{number(t[r])}*", "bold green") if r == t["chosen"] else Text(f"{number(t[r])} ") for r in rungs}
        rows.append([name, t["kind"], t["metric"], *star.values(), bar(t["test"], t["majority"]), t["kilobytes"]])
    odd = [Text(f"{name}: {warning}", "yellow") for name, t in tasks.items() for warning in t.get("warnings", ())]
    mean = number(sum(t["test"] for t in tasks.values()) / max(1, len(tasks)))
    means = f"mean test score {mean}, tasks {len(tasks)}; * chosen on validation; gain: from majority to chosen, on [0, 1]"
    made = f"seed {data['seed']}, {data['backbone']}, {data['dtype']}, {number(data['seconds'])} s"
    shown = table(["task", "kind", "metric", *rungs, "gain", "kB"], rows)
    used = [use(data["gates"]), ""] if data.get("gates") else []
    used += [merged(data["merged"]), ""] if data.get("merged") else []
    return Group(shown, "", *odd, Text(means, "dim"), Text(made, "dim"), "", *used, stages(data["stages"], "seconds"))


def use(gates: Mapping[str, Any]) -> RenderableType:
    """How much of each slot a gate gives the rows of each task; of many slots those that a task uses most."""
    if len(gates["slots"]) <= SLOTS:
        heads = ["weights", *gates["slots"]]
        rows = [[task, *map(float, row)] for task, row in zip(gates["tasks"], gates["weights"], strict=True)]
    else:
        heads, most = ["weights", "slots used most"], [most_used(row, gates["slots"]) for row in gates["weights"]]
        rows = [[t, ", ".join(f"{slot} {w:.2f}" for slot, w in pairs)] for t, pairs in zip(gates["tasks"], most, strict=True)]
    return Group(table(heads, rows), Text(gates["measure"], "dim"))


def most_used(weights: Sequence[float], slots: Sequence[str], most: int = 5) -> list[tuple[str, float]]:
    """(slot, weight) of the largest weights, the largest first; those below a hundredth are left out."""
    found = sorted(zip(slots, weights, strict=True), key=lambda pair: -abs(pair[1]))
    return [(slot, w) for slot, w in found[:most] if abs(w) >= 0.01]


def stages(taken: Mapping[str, float], unit: str) -> Table:
    """Where the time went, or will go."""
    most = max(taken.values(), default=0) or 1
    return table(["stage", unit, ""], [[name, Text(f"{t:,.2f}"), bar(t / most)] for name, t in taken.items()])


def dry(data: Mapping[str, Any]) -> RenderableType:
    """What ``fit --dry`` expects."""
    heads = list(dict.fromkeys(key for t in data["tasks"].values() for key in t))
    rows = [[name, *(t.get(key) for key in heads)] for name, t in data["tasks"].items()]
    total = f"{number(data['rows'])} rows, about {data['minutes']:,.1f} minutes and {data['megabytes']:,.1f} MB"
    return Group(table(["task", *heads], rows), "", stages(data["stages"], "minutes"), "", Text(total))


def evaluated(data: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [[name, t["metric"], t["rows"], t["score"], bar(t["score"])] for name, t in data.items()]
    return table(["task", "metric", "rows", "score", ""], rows)


def merged(data: Mapping[str, Any]) -> RenderableType:
    """Each task's own delta against the merged one."""
    pairs = [(name, t["single"], t["merged"]) for name, t in data["tasks"].items()]
    rows = [[name, single, many, Text(f"{many - single:+.3f}"), bar(many)] for name, single, many in pairs]
    change = data["mean_merged"] - data["mean_single"]
    rows.append(["mean", data["mean_single"], data["mean_merged"], Text(f"{change:+.3f}"), bar(0)])
    size, how = abs(data["kilobytes_saved"]), "saved" if data["kilobytes_saved"] >= 0 else "more than the deltas"
    saved = Text(f"{number(size)} kB {how}" + (f", in {data['bundle']}" if "bundle" in data else ""), "dim")
    return Group(table(["task", "single", "merged", "change", ""], rows), "", saved)


def checked(data: Mapping[str, Any]) -> RenderableType:
    """``data check``: counts per task, then what is odd, then what is wrong and where."""
    counts = ("missing", "empty", "long", "duplicates", "conflicts", "leaks", "unseen")
    rows, odd, wrong = [], list[RenderableType](), [Text(said(p), "red") for p in data["plan"]]
    for name, t in data["tasks"].items():
        parts = list((t["rows"] or dict.fromkeys(("train", "valid", "test"))).values())
        rows.append([name, t["kind"], t["labels"], *parts, *(t.get(c) for c in counts), len(t["problems"])])
        odd += [Text(f"{name}: {warning}", "yellow") for warning in t["warnings"]]
        wrong += [Text(f"{name}: {said(p)}", "red") for p in t["problems"]]
    heads = ["task", "kind", "labels", "train", "valid", "test", *counts, "problems"]
    found = Text(f"problems: {data['problems']}", "bold red") if data["problems"] else Text("no problems", "bold green")
    return Group(*([table(heads, rows)] if rows else []), *odd, *wrong, found)


def said(problem: Mapping[str, Any]) -> str:
    place = [f"{key} {problem[key]}" if key != "file" else str(problem[key]) for key in PLACE if problem.get(key) is not None]
    return ": ".join(filter(None, [", ".join(place), str(problem["message"])]))


def answers(replies: Sequence[Mapping[str, Any]]) -> Group:
    """Questions, each with the names that were found for it."""
    parts: list[RenderableType] = []
    for reply in replies:
        parts += ["", Text(reply["text"], "bold")]
        parts.append(facts({key: value for key, value in reply.items() if key != "text"}))
    return Group(*parts)


def facts(data: Mapping[str, Any]) -> Table:
    """Names and values, one a line."""
    shown = Table.grid(padding=(0, 2))
    for name, value in data.items():
        words = ", ".join(map(str, value)) if isinstance(value, list) else value
        shown.add_row(Text(name, "dim"), cell(json.dumps(words) if isinstance(words, dict) else words))
    return shown


def verdict(data: Mapping[str, Any]) -> RenderableType:
    """A claim's verdict: each comparison with its interval, and all that was measured."""
    from anabranch.atlas.show import COLOURS, chart

    heads = ("claim", "excess", "low", "high", "pairs", "verdict")
    rows = [(c["claim"], c["mean"], *c["interval"], c["pairs"], Text(c["verdict"], COLOURS[c["verdict"]]))
            for c in data["comparisons"]]  # fmt: skip
    title = Text.assemble((data["id"], "bold"), ": ", (data["verdict"], COLOURS[data["verdict"]]))
    seconds = f"{len(data['seeds'])} seeds on the {data['data']}, {sum(data['cpu']):.0f} CPU seconds; {data['test']}"
    return Group(title, Text(data["note"]), "", table(heads, rows), "", Text(chart(data["numbers"])), Text(seconds, "dim"), "")


def changed(data: Mapping[str, Any]) -> RenderableType:
    """Results where there are scores of tasks, else facts."""
    tasks = data.get("tasks")
    scored = isinstance(tasks, dict) and tasks and all(isinstance(t, dict) and "test" in t for t in tasks.values())
    return results(data) if scored and "stages" in data else facts(data)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Columns of numbers stand to the right and never wrap; in a narrow terminal bars give way first, then words."""
    rows = list(rows)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for head, column in zip(heads, zip(*rows, strict=True) if rows else [()] * len(heads), strict=True):
        words = all(isinstance(value, str | Bar) for value in column)
        bars = any(isinstance(value, Bar) for value in column)
        justify: Any = "left" if words else "right"
        shown.add_column(head, justify=justify, no_wrap=not words, overflow="fold", max_width=WIDTH if bars else None)
    for row in rows:
        shown.add_row(*map(cell, row))
    return shown


def cell(value: Any) -> RenderableType:
    return value if isinstance(value, Text | Bar) else Text(value if isinstance(value, str) else number(value))


def number(value: Any) -> str:
    """Scores with three digits, amounts with one; a dash for what was not run."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if abs(value) <= 1 else f"{value:,.1f}"


def bar(end: float | None, begin: float | None = None) -> Bar:
    """A bar on [0, 1], from ``begin`` (0) to ``end``; nothing where it would run backwards."""
    low, high = (min(1.0, max(0.0, x or 0.0)) for x in (begin, end))
    return Bar(1.0, low, high, color="green")
