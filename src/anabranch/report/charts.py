"""Charts as inline SVG: readable without a script, on paper, light and dark; colours are classes of style.css.

A library's own script (4.8 MB of plotly.js, or Vega's, which Python can only embed through a 33 MB wheel) would outweigh
every report; these are a few kilobytes each. Hover texts are ``data-tip``, which page.js shows.
"""

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup, escape

RUNGS = ("majority", "probe", "shared", "delta")  # from the cheapest to the costliest
SURE = 1.96  # standard errors on either side: a 95 % interval
Point = tuple[float, float]


def tag(name: str, *inner: Any, **attributes: Any) -> Markup:
    """An element; every value is escaped. ``class_`` is class, ``stroke_width`` is stroke-width, None leaves one out."""
    shown = {n.rstrip("_").replace("_", "-"): v for n, v in attributes.items() if v is not None}
    text = "".join(f' {n}="{escape(short(v))}"' for n, v in shown.items())
    return Markup(f"<{name}{text}>{''.join(map(escape, inner))}</{name}>")


def short(value: Any) -> Any:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def svg(width: float, height: float, label: str, *inner: Any, kind: str = "chart") -> Markup:
    """A drawing; ``label`` says in words what it shows."""
    box = f"0 0 {width:.0f} {height:.0f}"
    return tag("svg", *inner, viewBox=box, role="img", aria_label=label, class_=kind, width=float(width), height=float(height))


def line(x1: float, y1: float, x2: float, y2: float, kind: str, **more: Any) -> Markup:
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=kind, **more)


def text(x: float, y: float, words: Any, kind: str = "", **more: Any) -> Markup:
    return tag("text", words, x=float(x), y=float(y), class_=kind or None, **more)


def path(points: Iterable[Point], kind: str, **more: Any) -> Markup:
    return tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), class_=kind, fill="none", **more)


def mark(rung: str, x: float, y: float, size: float = 4.0, hollow: bool = True, **more: Any) -> Markup:
    """Each rung has its own shape, so that nothing depends on colour: bar, circle, diamond, square."""
    kind, s = f"mark {rung}{' hollow' if hollow else ''}", size
    shapes = {
        "majority": [(-0.6, -s), (0.6, -s), (0.6, s), (-0.6, s)],
        "shared": [(0, -1.3 * s), (1.3 * s, 0), (0, 1.3 * s), (-1.3 * s, 0)],
        "delta": [(-s, -s), (s, -s), (s, s), (-s, s)],
    }
    if rung not in shapes:
        return tag("circle", cx=float(x), cy=float(y), r=float(s), class_=kind, **more)
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[rung])
    return tag("polygon", points=points, class_=kind, **more)


def number(value: Any, digits: int = 3) -> str:
    """Scores with three digits, amounts with three that matter, a dash for what was not run."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}" if abs(value) <= 1 else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high]."""
    raw = (high - low) / about or 1.0
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with 2s and 5s between them where they would be few."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        found = [m * 10.0**e for e in exponents for m in steps if low <= m * 10.0**e <= high]
        if len(found) > 2:
            break
    return found


def ladder(task: Mapping[str, Any], low: float, high: float, width: int = 200) -> Markup:
    """A task's test scores on [low, high]: a mark for every rung with its interval, filled for the chosen one."""

    def x(value: float) -> float:
        return 8 + (width - 16) * (min(max(value, low), high) - low) / ((high - low) or 1)

    rungs = [r for r in RUNGS if task.get(r) is not None]
    height, parts = 10 + 7 * len(rungs), [line(x(t), 0, x(t), 8 + 7 * len(rungs), "grid") for t in ticks(low, high)]
    for i, rung in enumerate(rungs):
        value, y = task[rung], 8 + 7 * i
        spread = interval(task, rung)
        if spread:
            parts.append(line(x(value - spread), y, x(value + spread), y, f"whisker {rung}"))
        more = f" ± {number(spread)}" if spread else ""
        chosen = ", chosen" if rung == task["chosen"] else ""
        parts.append(mark(rung, x(value), y, 3.2, rung != task["chosen"], data_tip=f"{rung} {number(value)}{more}{chosen}"))
    words = ", ".join(f"{r} {number(task[r])}" for r in rungs)
    return svg(width, height, words, *parts, kind="ladder")


def interval(task: Mapping[str, Any], rung: str) -> float | None:
    """Half of the 95 % interval of a rung's test score; None where it is not known."""
    error = (task.get("rungs", {}).get(rung) or {}).get("error")
    return None if error is None else SURE * error


def pareto(tasks: Mapping[str, Mapping[str, Any]], cost: str, unit: str, scale: float = 1.0) -> Markup | None:
    """Score against ``cost`` (a key of a rung) on a logarithmic axis: a thin line a task over its rungs, and the means of all
    tasks if every one took the same rung, or the chosen one. None where no rung has the cost."""
    priced = {n: [(r, t["rungs"][r][cost] * scale, t[r]) for r in RUNGS if t.get(r) is not None
                  and (t.get("rungs", {}).get(r) or {}).get(cost) is not None] for n, t in tasks.items()}  # fmt: skip
    known = [(c, s) for points in priced.values() for _, c, s in points]
    if not known:
        return None
    least = min((c for c, _ in known if c > 0), default=1.0)
    low, high = least / 1.5, max(max(c for c, _ in known), least) * 1.5
    bottom, top = math.floor(10 * min(s for _, s in known) - 0.3) / 10, max(1.0, *(s for _, s in known))
    width, height, left, under = 720, 360, 44, 44

    def place(c: float, s: float) -> Point:
        across = math.log(max(c, low) / low) / math.log(high / low)
        return left + (width - left - 16) * across, 12 + (height - under - 12) * (1 - (s - bottom) / (top - bottom))

    parts = [line(left, place(low, t)[1], width - 16, place(low, t)[1], "grid") for t in ticks(bottom, top)]
    parts += [text(left - 6, place(low, t)[1] + 4, number(t, 1), "tick", text_anchor="end") for t in ticks(bottom, top)]
    parts += [line(place(t, 0)[0], 12, place(t, 0)[0], height - under, "grid") for t in decades(low, high)]
    parts += [text(place(t, 0)[0], height - under + 16, f"{t:g}", "tick", text_anchor="middle") for t in decades(low, high)]
    parts.append(text((left + width) / 2, height - 8, unit, "axis", text_anchor="middle"))
    parts.append(text(12, (height - under) / 2, "test score", "axis", text_anchor="middle",
                      transform=f"rotate(-90 12 {(height - under) / 2:.0f})"))  # fmt: skip
    for name, points in priced.items():
        spots = [place(c, s) for _, c, s in points]
        tips = [f"{name}, {r}: {number(s)} at {number(c, 2)} {unit}" for r, c, s in points]
        dots = [
            mark(r, *at, 2.6, r != tasks[name]["chosen"], data_tip=tip)
            for (r, *_), at, tip in zip(points, spots, tips, strict=True)
        ]
        parts.append(tag("g", path(spots, "thin"), *dots, class_="one", data_task=name))
    means = mean_points(tasks, priced)
    parts.append(path([place(c, s) for c, s in frontier([(c, s) for _, c, s in means])], "front"))
    for rung, c, s in means:
        x, y = place(c, s)
        label = f"mean of all tasks, {rung}: {number(s)} at {number(c, 2)} {unit}"
        parts.append(mark(rung, x, y, 6.5, False, data_tip=label, stroke_width=2.0))
    beside_of = apart([place(c, s)[1] for _, c, s in means])
    for (rung, c, s), beside in zip(means, beside_of, strict=True):
        x, y = place(c, s)
        end = x > width - 150
        side = -22 if end else 22
        parts += [line(x, y, x + side, beside, "leader")] if abs(beside - y) > 4 else []
        parts.append(text(x + side, beside + 4, f"mean, {rung}", "label", text_anchor="end" if end else "start"))
    words = "; ".join(f"{r} {number(s)} at {number(c, 2)}" for r, c, s in means)
    return svg(width, height, f"Test score against {unit}; means over all tasks: {words}", *parts)


def mean_points(
    tasks: Mapping[str, Any], priced: Mapping[str, Sequence[tuple[str, float, float]]]
) -> list[tuple[str, float, float]]:
    """(rung, mean cost, mean score) of every rung that all tasks have, and of what each chose."""
    out = []
    for rung in (*RUNGS, "chosen"):
        mine = [
            (c, s)
            for n, points in priced.items()
            for r, c, s in points
            if r == (tasks[n]["chosen"] if rung == "chosen" else rung)
        ]
        if len(mine) == len(tasks):
            out.append((rung, sum(c for c, _ in mine) / len(mine), sum(s for _, s in mine) / len(mine)))
    return out


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both cost and score, as a staircase's corners."""
    best: list[Point] = []
    for cost, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or value > best[-1][1]:
            best += [(cost, best[-1][1])] if best else []
            best.append((cost, value))
    return best


def apart(places: Sequence[float], gap: float = 15.0) -> list[float]:
    """The places, moved just so far that labels do not lie on each other."""
    out, order = list(places), sorted(range(len(places)), key=places.__getitem__)
    for before, after in pairwise(order):
        out[after] = max(out[after], out[before] + gap)
    return out


def curve(entries: Sequence[Mapping[str, float]], chosen: float | None = None) -> Markup | None:
    """Validation score by epoch, and both losses below it, each on its own axis."""
    shown = [
        ("valid", "validation score", "score"),
        ("valid_loss", "validation loss", "loss"),
        ("loss", "training loss", "train"),
    ]
    lines = [(label, kind, [(e["epoch"], e[key]) for e in entries if e.get(key) is not None]) for key, label, kind in shown]
    last = max((e["epoch"] for e in entries), default=0)
    if not any(points for *_, points in lines):
        return None
    width, panel, parts = 400, 96, []
    for row, group in enumerate([lines[:1], lines[1:]]):
        values = [v for *_, points in group for _, v in points]
        if not values:
            continue
        low, high = min(values), max(values)
        low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
        above = 14 + row * (panel + 30)
        parts += axis(low, high, above, panel, width)
        for label, kind, points in (g for g in group if g[2]):
            places = [
                (40 + (width - 60) * (e - 1) / max(1, last - 1), above + panel * (1 - (v - low) / (high - low)))
                for e, v in points
            ]
            parts.append(path(places, f"curve {kind}"))
            parts += [tag("circle", cx=x, cy=y, r=3.0, class_=f"dot {kind}", data_tip=f"epoch {int(e)}: {label} {number(v)}")
                      for (x, y), (e, v) in zip(places, points, strict=True)]  # fmt: skip
        parts.append(text(40, above - 4, " · ".join(label for label, _, points in group if points), "tick"))
    height = 14 + 2 * (panel + 30) + 8
    parts.append(text(width / 2, height - 8, f"epochs 1 to {int(last)}", "tick", text_anchor="middle"))
    ends = [f"{label} from {number(p[0][1])} to {number(p[-1][1])}" for label, _, p in lines if p]
    return svg(width, height, f"Learning curve over {int(last)} epochs: {'; '.join(ends)}", *parts)


def axis(low: float, high: float, above: float, panel: float, width: float) -> list[Markup]:
    parts = []
    for t in ticks(low, high, 3):
        y = above + panel * (1 - (t - low) / (high - low))
        parts += [line(40, y, width - 20, y, "grid"), text(36, y + 4, number(t, 2), "tick", text_anchor="end")]
    return parts


def stages(taken: Mapping[str, float]) -> Markup:
    """Where the time went."""
    most, parts = max(taken.values(), default=0) or 1, []
    for i, (name, seconds) in enumerate(taken.items()):
        y = 4 + 20 * i
        parts += [
            text(70, y + 11, name, "tick", text_anchor="end"),
            text(85 + 250 * seconds / most, y + 11, f"{seconds:,.1f} s", "tick"),
        ]
        parts.append(tag("rect", x=78.0, y=float(y), width=max(1.0, 250 * seconds / most), height=14.0, class_="bar"))
    words = ", ".join(f"{n} {s:,.1f} s" for n, s in taken.items())
    return svg(400, 8 + 20 * len(taken), f"Seconds of each stage: {words}", *parts)


def image(values: Sequence[Sequence[float]]) -> str:
    """[r, c] in [-1, 1] as a PNG of one pixel a cell, in a data URI: blue where positive, orange where negative, the
    clearer the nearer to 0, so that it lies well on any background."""
    v = np.asarray(values, float)
    colours = np.where(v[..., None] >= 0, (0, 98, 178), (201, 92, 0))
    pixels = np.concatenate([colours, np.round(255 * np.abs(v).clip(max=1))[..., None]], -1).astype(np.uint8)
    rows = np.pad(pixels.reshape(len(v), -1), ((0, 0), (1, 0)))  # every line begins with its filter, 0: none

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", len(values[0]), len(values), 8, 6, 0, 0, 0)  # 8 bits, RGBA
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def heat(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], label: str, id: str = "",
         tree: Sequence[Sequence[Point]] = (), words: Sequence[Sequence[str]] = ()) -> Markup:  # fmt: skip
    """A matrix in [-1, 1] with names beside it (up to 80), ``words`` in its cells (up to 12) and a dendrogram above; page.js
    reads cells from data ``id``."""
    n, m = len(rows), len(columns)
    cell = max(2.0, min(44.0 if max(n, m) <= 12 else 26.0, 560 / max(n, m)))
    named = max(n, m) <= 80
    size = min(11.0, cell * 0.95)
    left = 12 + (min(22, max(map(len, rows))) * size * 0.6 if named else 0)
    crown = 60.0 if tree else 4.0
    wide, high = cell * m, cell * n
    below = (min(22, max(map(len, columns))) * size * 0.6 if named else 0) + 10
    deepest = max((y for line in tree for _, y in line), default=0) or 1
    parts = [path([(left + cell * x, crown - 6 - (crown - 12) * y / deepest) for x, y in line], "tree") for line in tree]
    parts.append(tag("image", href=image(values), x=left, y=crown, width=wide, height=high, preserveAspectRatio="none",
                     class_="heat", data_heat=id or None))  # fmt: skip
    parts.append(tag("rect", x=left, y=crown, width=wide, height=high, class_="frame"))
    if words and max(n, m) <= 12:
        parts += [text(left + cell * (j + 0.5), crown + cell * (i + 0.5) + 4, word, "cell", text_anchor="middle")
                  for i, row in enumerate(words) for j, word in enumerate(row)]  # fmt: skip
    if named:
        for i, name in enumerate(rows):
            y = crown + cell * (i + 0.5) + size * 0.35
            parts.append(text(left - 5, y, cut(name), "name", text_anchor="end", font_size=size, data_task=name))
        for i, name in enumerate(columns):
            x, y = left + cell * (i + 0.5), crown + high + 6
            turn = f"rotate(-90 {x:.1f} {y:.1f})"
            parts.append(
                text(x, y + size * 0.35, cut(name), "name", text_anchor="end", font_size=size, transform=turn, data_task=name)
            )
    return svg(left + wide + 12, crown + high + below, label, *parts, kind="chart map")


def use(gates: Mapping[str, Any]) -> Markup:
    """Mean weight of each slot (columns) for each task (rows); the largest has the strongest colour."""
    weights = gates["weights"]
    top = max((abs(w) for row in weights for w in row), default=0.0) or 1.0
    label = f"Mean weight of each of {len(gates['slots'])} slots for each of {len(gates['tasks'])} tasks"
    shades, words = [[w / top for w in row] for row in weights], [[f"{w:.2f}" for w in row] for row in weights]
    return heat(shades, gates["tasks"], gates["slots"], label, words=words)


def graph(places: Mapping[str, Point], edges: Sequence[tuple[str, str, float]], groups: Mapping[str, int]) -> Markup:
    """Tasks as dots, at places in [-1, 1]^2; a line helps (solid) or hurts (dashed), the thicker the more."""
    width, height, many = 720, 480, len(places) > 60
    at = {n: (70 + (width - 140) * (x + 1) / 2, 30 + (height - 60) * (y + 1) / 2) for n, (x, y) in places.items()}
    parts = [line(*at[a], *at[b], "edge helps" if v > 0 else "edge hurts", stroke_width=0.5 + 5 * abs(v),
                  data_tip=f"{a} and {b}: {v:+.2f}") for a, b, v in edges]  # fmt: skip
    for name, (x, y) in at.items():
        near = sorted(((v, b if a == name else a) for a, b, v in edges if name in (a, b)), reverse=True)
        tip = f"{name}" + "".join(f"; {other} {v:+.2f}" for v, other in near[:4])
        dot = tag("circle", cx=x, cy=y, r=4.0 if many else 7.0, class_=f"node group{groups[name] % 6}", data_tip=tip)
        name_ = [] if many else [text(x, y - 11, cut(name, 18), "name", text_anchor="middle")]
        parts.append(tag("g", dot, *name_, class_="one", data_task=name))
    helps = sum(v > 0 for *_, v in edges)
    return svg(width, height, f"{len(places)} tasks; {helps} pairs help each other, {len(edges) - helps} hurt", *parts)


def cut(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def confusion(cells: Sequence[Sequence[int]], labels: Sequence[str]) -> tuple[Markup, list[dict[str, Any]]]:
    """The matrix, true labels as rows, each as a share of its row; and the most frequent confusions in words. Of many labels
    those are drawn that are confused most."""
    total = [sum(n for t, _, n in cells if t == i) for i in range(len(labels))]
    mixed = [sum(n for t, s, n in cells if t != s and i in (t, s)) for i in range(len(labels))]
    kept = sorted(sorted(range(len(labels)), key=lambda i: -mixed[i])[:30])
    here = {i: n for n, i in enumerate(kept)}
    values, words = [[0.0] * len(kept) for _ in kept], [[""] * len(kept) for _ in kept]
    for t, s, n in cells:
        if t in here and s in here and total[t]:
            values[here[t]][here[s]], words[here[t]][here[s]] = (1 if t == s else -1) * n / total[t], str(n)
    worst: list[dict[str, Any]] = [
        {"truth": labels[t], "said": labels[s], "n": n, "share": n / total[t]} for t, s, n in cells if t != s
    ]
    names = [labels[i] for i in kept]
    right = sum(n for t, s, n in cells if t == s) / max(1, sum(total))
    label = f"Confusion matrix of {len(kept)} labels, true ones as rows: {right:.0%} on the diagonal"
    return heat(values, names, names, label, words=words), sorted(worst, key=lambda w: -w["n"])[:8]
