"""What ``anabranch atlas`` shows: each function gives data (``json=True``) or a rich renderable of the same data."""

import ast
import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from anabranch.atlas.rows import Row, row, rows, table
from anabranch.atlas.search import minilm, search
from anabranch.atlas.status import STATUSES, cited, claim_of, status_of, statuses, verdict

COLOURS = {"held": "green", "not held": "red", "inconclusive": "yellow", "runs": "cyan", "missing": "dim"}
IN_PLAN = ("delta", "gate", "merge", "balance")  # the families that a plan has a key for
LISTED = ("id", "n", "title", "family", "kind", "fidelity", "value", "also", "needs")


def overview(json: bool = False) -> Any:
    """The whole catalogue: ``{"rows": [{"id", ..., "status"}]}``, or a table of counts by family."""
    if json:
        now = statuses(r.id for r in rows())
        return {"rows": [{name: getattr(r, name) for name in LISTED} | {"status": now[r.id]} for r in rows()]}
    shown, counts = Table(box=None, header_style="bold"), table()
    for name in ("family", "rows", *STATUSES):
        shown.add_column(name, justify="left" if name == "family" else "right", style=COLOURS.get(name))
    for family, by in counts.items():
        shown.add_row(family, *map(str, (sum(by.values()), *by.values())))
    shown.add_section()
    total = {s: sum(by[s] for by in counts.values()) for s in STATUSES}
    shown.add_row("all", *map(str, (sum(total.values()), *total.values())), style="bold")
    return shown


def found(words: str, json: bool = False, k: int = 10) -> Any:
    """The best rows: ``{"words", "by": "meaning" | "words", "rows": [{"id", ..., "status", "score"}]}``, or a table."""
    hits = search(words, k)
    now = statuses(r.id for r, _ in hits)
    if json:
        by = "words" if minilm() is None else "meaning"
        listed = [{n: getattr(r, n) for n in LISTED} | {"status": now[r.id], "score": round(s, 4)} for r, s in hits]
        return {"words": words, "by": by, "rows": listed}
    if not hits:
        return Text("no row has any of these words")
    shown = Table(box=None, header_style="bold")
    for name in ("score", "id", "family", "status", "title"):
        shown.add_column(name, no_wrap=True, overflow="ellipsis" if name == "title" else "fold")
    for r, score in hits:
        shown.add_row(f"{score:.2f}", r.id, r.family, Text(now[r.id], COLOURS[now[r.id]]), r.title)
    return shown


def show(id: str, json: bool = False) -> Any:
    """One row with everything known about it; see :func:`about` for the data. Raises InputError for an unknown id."""
    r = row(id)
    data = about(r, cited())
    return data if json else _page(r, data)


def about(r: Row, methods: dict[str, list[Path]]) -> dict[str, Any]:
    """The row's fields, ``status``, ``methods`` (:func:`method`), ``claim_file`` and the stored ``verdict`` or None.

    methods: :func:`anabranch.atlas.status.cited`.
    """
    paths = methods.get(r.id, [])
    claim = claim_of(r.id)
    where = f"claims/{claim.name}" if claim else None
    return asdict(r) | {
        "status": status_of(r.id, bool(paths)),
        "methods": [method(path) for path in paths],
        "claim_file": where,
        "verdict": verdict(r.id),
    }


def method(path: Path) -> dict[str, Any]:
    """A method read from its file, which is not imported.

    ``{"method": "merge.ties", "kind": "function" | "class" | "module", "name", "equation", "settings", "usage"}``;
    equation = the indented lines of the docstring, settings = {name: default as Python source}, usage = a snippet of a
    plan (YAML) where plans have a key for the family, else of Python.
    """
    family, name = path.parent.name, path.stem
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = (name, "".join(part.capitalize() for part in name.split("_")))
    kinds = (ast.FunctionDef, ast.ClassDef)
    node = next((n for n in tree.body if isinstance(n, kinds) and n.name in names), None)
    settings = _settings(node)
    kind = {ast.FunctionDef: "function", ast.ClassDef: "class"}.get(type(node), "module")
    called = node.name if isinstance(node, kinds) else name
    return {
        "method": f"{family}.{name}",
        "kind": kind,
        "name": called,
        "equation": _equation(tree) or _equation(node),
        "settings": settings,
        "usage": _usage(family, name, settings),
    }


def numbers(found: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], float, float, float]]:
    """The measured means in a verdict, ``(path of keys, mean, low, high)``, wherever they are in it.

    A mean is ``{"mean": x}`` with its interval as ``"low"`` and ``"high"`` or as ``"interval": [low, high]``.
    """
    if not isinstance(found, dict):
        return []
    if isinstance(mean := found.get("mean"), (int, float)):
        low, high = found.get("interval") or (found.get("low"), found.get("high"))
        return [(path or ("mean",), mean, mean if low is None else low, mean if high is None else high)]
    return [item for name, inner in found.items() for item in numbers(inner, (*path, str(name)))]


def chart(found: dict[str, Any], width: int = 24) -> str:
    """The measured means as text: name, mean, interval, and both on an axis that they share with their siblings.

    An axis ends at the lowest and highest bound on it; that of a single mean, such as a difference, has 0 on it.
    """
    measured, lines = numbers(found), []
    spans = [f"[{low:.4g}, {high:.4g}]" for *_, low, high in measured]
    for (path, mean, low, high), span in zip(measured, spans, strict=True):
        beside = [m for m in measured if m[0][:-1] == path[:-1]]
        ends = [bound for *_, a, b in beside for bound in (a, b)] + [0.0] * (len(beside) == 1)
        scale = (width - 1) / ((max(ends) - min(ends)) or 1)
        dot, left, right = (round((x - min(ends)) * scale) for x in (mean, low, high))
        axis = "".join("●" if i == dot else "─" if left <= i <= right else "·" for i in range(width))
        name = f"{path[-1]:{max(len(p[-1]) for p, *_ in measured)}}"
        lines.append(f"{name}  {mean:8.4g}  {span:{max(map(len, spans))}}  {axis}")
    return "\n".join(lines)


def facts(found: dict[str, Any]) -> str:
    """Everything else that a verdict says in one number or word: the test, its margin, seeds, seconds."""
    plain = {n: v for n, v in found.items() if isinstance(v, (str, int, float)) and n not in ("verdict", "row")}
    return ", ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in plain.items())


def _page(r: Row, data: dict[str, Any]) -> Group:
    status, parts = data["status"], list[RenderableType]()
    parts.append(Text.assemble((r.title, "bold"), "  ", (status, COLOURS[status])))
    also = f" (also {', '.join(r.also)})" if r.also else ""
    parts.append(Text(f"{r.id} · {r.family}{also} · {r.kind} · {r.fidelity} · value {r.value} of 5", "dim"))
    sections: list[tuple[str, RenderableType]] = [("idea", Text(r.idea))]
    for m in data["methods"]:
        if m["equation"]:
            sections.append(("equation", Text(m["equation"])))
        sections.append((m["kind"], Text(f"anabranch.{m['method']}")))
        sections.append(("use", Syntax(m["usage"], "yaml" if m["method"].split(".")[0] in IN_PLAN else "python")))
    if not data["methods"]:
        sections.append(("to build", Text(r.build)))
    sections += [("claim", Text(r.claim)), ("against", Text(r.baseline))]
    if data["claim_file"]:
        sections.append(("run", Text(f"anabranch claim {r.id}")))
    if data["verdict"]:
        lines = filter(None, (status, chart(data["verdict"]), facts(data["verdict"])))
        sections.append(("verdict", Text("\n".join(lines), no_wrap=False)))
    if r.repo:
        sections.append(("code", Text(f"https://github.com/{r.repo}")))
    for name, body in sections:
        parts += [Text(f"\n{name}", "bold"), Padding(body, (0, 0, 0, 2))]
    return Group(*parts)


def _equation(node: Any) -> str:
    """The lines of a docstring that stand deeper than its text, as one block."""
    if node is None or (text := ast.get_docstring(node, clean=False)) is None:
        return ""
    indent = " " * (node.body[0].col_offset + 4)
    return "\n".join(line.removeprefix(indent) for line in text.splitlines() if line.startswith(indent)).strip()


def _settings(node: ast.stmt | None) -> dict[str, str]:
    """What a user may set, with defaults as source: a class's fields, a function's keyword-only parameters."""
    if isinstance(node, ast.ClassDef):
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and "ClassVar" not in ast.dump(f.annotation)]
        return {f.target.id: ast.unparse(f.value) for f in fields if isinstance(f.target, ast.Name) and f.value}
    if isinstance(node, ast.FunctionDef):
        pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        return {arg.arg: ast.unparse(default) for arg, default in pairs if default is not None}
    return {}


def _usage(family: str, name: str, settings: dict[str, str]) -> str:
    if family not in IN_PLAN:
        return f"import anabranch as ab\n\nab.{family}.{name}"
    values = {}
    for key, source in settings.items():
        try:
            values[key] = jsonlib.dumps(ast.literal_eval(source))
        except (ValueError, TypeError):
            continue  # a default that is no plain value is not for a plan
    inner = ", ".join(f"{key}: {value}" for key, value in values.items())
    return f"{family}: {{{name}: {{{inner}}}}}" if inner else f"{family}: {name}"
