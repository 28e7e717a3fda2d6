"""``RUN/report.html``: what a fit was asked, found, chose and costs, in one file that loads nothing.

anabranch report RUN        python: anabranch.report.html.write(run)
"""

import base64
import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from anabranch.engine import store
from anabranch.engine.cache import read_json
from anabranch.engine.cache import write as write_file
from anabranch.errors import InputError, WorkError
from anabranch.report import charts, table
from anabranch.report.relation import relation

FOLDER = Path(__file__).with_name("templates")
ODD = ("duplicates", "conflicts", "leaks", "doubtful", "unseen", "empty", "long", "missing", "skipped")


def write(run: Path) -> Path:
    """Writes the report of a finished run; returns its path. InputError for a folder that is none, WorkError when damaged."""
    text = page(Path(run))
    return write_file(Path(run) / "report.html", lambda part: part.write_text(text, encoding="utf-8"))


def page(run: Path) -> str:
    """The report as HTML."""
    results = table.read(run)
    if "mean_merged" in results:
        raise InputError(f"{run} is a merge, of which the table is all: report the run that it was made from, {run.parent}")
    plan = read_json(run / "plan.json") if (run / "plan.json").is_file() else None
    try:
        return environment().get_template("report.html").render(gathered(run, results, plan))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, UndefinedError) as error:
        raise WorkError(f"{run / 'results.json'} is damaged ({error!r}): restore it from a copy, or fit again") from error


@cache
def environment(*folders: Path) -> Environment:
    """Templates of ``folders`` and of the report; every value in them is escaped."""
    loader = FileSystemLoader([*folders, FOLDER])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["num"] = charts.number
    made.globals |= {"charts": charts, "duration": duration, "most_used": table.most_used, "took": took}
    return made


def asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def gathered(run: Path, results: Mapping[str, Any], plan: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the template shows."""
    tasks, script = results["tasks"], asset("page.js")
    whole: dict[str, Any] = {
        "backbone": "?",
        "dtype": "?",
        "seed": "?",
        "seconds": None,
        "stages": {},
        "versions": {},
        "notes": [],
        "merged": None,
        "machine": {},
    }
    results = whole | dict(results)
    results["versions"] = {"anabranch": "?"} | results["versions"]
    data = {n: row for n, t in tasks.items() if any((row := odd(t)).values())}
    related = results.get("related")
    if related:
        related = dict(related) | relation(related["tasks"], related["matrix"]) if len(related["tasks"]) > 1 else None
    sections = [("asked", "Asked"), ("data", "Data"), ("ladder", "Ladder"), ("cost", "Cost"), ("map", "Task map"),
                ("tasks", "Tasks"), ("more", "100 more"), ("use", "Use"), ("versions", "Versions")]  # fmt: skip
    return scale(tasks) | {
        "title": run.resolve().name, "results": results, "tasks": tasks, "plan": plan, "sections": sections,
        "style": Markup(asset("style.css")), "script": Markup(script), "script_hash": digest(script),
        "mean_chosen": mean(t["test"] for t in tasks.values()), "mean_majority": mean(t["majority"] for t in tasks.values()),
        "mean_probe": mean(t["probe"] for t in tasks.values()), "mean_ms": mean(took(t) for t in tasks.values()),
        "mean_kilobytes": mean(t["kilobytes"] for t in tasks.values()),
        "total_megabytes": sum(t["kilobytes"] for t in tasks.values()) / 1000,
        "rows": sum(t["n_train"] + t["n_valid"] + t["n_test"] for t in tasks.values()),
        "chosen": dict(Counter(t["chosen"] for t in tasks.values()).most_common()),
        "settings": asked(plan) if plan else [], "plan_yaml": spelled(plan) if plan else "",
        "data": data, "found_columns": [c for c in ODD if any(row[c] for row in data.values())], "clean": len(tasks) - len(data),
        "warnings": [(n, w) for n, t in tasks.items() for w in t.get("warnings", ())],
        "anchor": lambda name, i: f"#task-{i}", "plain": lambda name: name,
        "by_size": charts.pareto(tasks, "kilobytes", "kilobytes a task"),
        "by_time": charts.pareto(tasks, "seconds", "milliseconds a row", 1000.0),
        "related": related, "gates": results.get("gates"), "hundred": hundred(results),
        "snippets": snippets(run, results), "made": made(run, results),
    }  # fmt: skip


def scale(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The rungs that were run, and the axis that all ladders share."""
    rungs = [r for r in charts.RUNGS if any(t.get(r) is not None for t in tasks.values())]
    scores = [t[r] for t in tasks.values() for r in rungs if t.get(r) is not None]
    return {"rungs": rungs, "low": max(-1.0, min([0.0, *scores])), "high": max([1.0, *scores])}


def odd(task: Mapping[str, Any]) -> dict[str, int]:
    return {c: (task.get("counts", {}).get(c) if c != "doubtful" else task.get("doubtful")) or 0 for c in ODD}


def mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def took(task: Mapping[str, Any]) -> float | None:
    """Milliseconds a row of the chosen rung."""
    seconds = (task.get("rungs", {}).get(task["chosen"]) or {}).get("seconds")
    return None if seconds is None else 1000 * seconds


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def digest(script: str) -> str:
    """What a content security policy calls a script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def asked(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The plan but its tasks, in words."""
    return [(n, json.dumps(v, ensure_ascii=False).strip('"')) for n, v in thin(plan).items() if n != "tasks"]


def thin(value: Any) -> Any:
    """Without what was not set."""
    return {k: thin(v) for k, v in value.items() if v is not None and thin(v) != {}} if isinstance(value, Mapping) else value


def spelled(plan: Mapping[str, Any]) -> str:
    return yaml.safe_dump(thin(plan), sort_keys=False, allow_unicode=True)


def hundred(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What another 100 tasks would cost, from the means of these: (what, as chosen, with probes only)."""
    tasks, stages = results["tasks"], results["stages"]
    n = max(1, len(tasks))
    least = mean((t.get("rungs", {}).get("probe") or {}).get("kilobytes") for t in tasks.values())
    look = sum(stages.get(s, 0.0) for s in ("look", "features", "probe"))
    all_of_it = look + sum(stages.get(s, 0.0) for s in ("relate", "delta", "choose"))
    size = mean(t["kilobytes"] for t in tasks.values()) or 0.0
    return [
        ("disk and memory", f"{size / 10:.1f} MB", "–" if least is None else f"{least / 10:.1f} MB"),
        ("fitting, on this machine", duration(100 * all_of_it / n), duration(100 * look / n)),
        ("answering a row", "no more", "no more"),
    ]


def snippets(run: Path, results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Command line, Python, HTTP: on a task and a row that fit this bundle."""
    name, task = next(iter(results["tasks"].items()), ("all", {"kind": "classify"}))
    more: dict[str, dict[str, Any]] = {"pair": {"text_b": "..."}, "choice": {"choices": ["...", "..."]}}
    row = {"tokens": ["...", "..."]} if task["kind"] == "tag" else {"text": "..."} | more.get(task["kind"], {})
    place, told = shlex.quote(str(run)), json.dumps(row)
    body = json.dumps({"task": name, "inputs": [row]})
    return [
        ("Command line", f"echo {shlex.quote(told)} | anabranch predict {place} --task {shlex.quote(name)}"),
        ("Python", f"import anabranch as ab\n\nmodel = ab.load({str(run)!r})\nmodel.predict({name!r}, [{told}])\n"
                   f'model.predict("all", [{told}])  # every task in one forward pass'),
        ("HTTP", f"anabranch serve {place} --port 8000\n"
                 f"curl -s localhost:8000/v1/predict -H 'content-type: application/json' -d {shlex.quote(body)}"),
    ]  # fmt: skip


def made(run: Path, results: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    rows = [("seed", results["seed"]), ("backbone", results["backbone"]), ("type", results["dtype"])]
    rows += list(results["versions"].items()) + list(results["machine"].items())
    if (run / "bundle" / "bundle.json").is_file():
        _, bundle = store.open_bundle(run)
        rows.append(("weights of the backbone", bundle["backbone"]["fingerprint"]))
        rows += [
            ("delta", b["delta"]["method"].partition(".")[2] + f" {json.dumps(b['delta']['settings'])}") for b in bundle["banks"]
        ]
        rows += [("gate", g) for g in dict.fromkeys(b["gate"]["method"].partition(".")[2] for b in bundle["banks"])]
    return list(dict.fromkeys((n, v) for n, v in rows if n != "dtype"))
