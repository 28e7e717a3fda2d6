"""The drawings: escaped, in their frame, the same marks for the same rungs, and right where they can be read off."""

import base64
import re
import struct
import xml.etree.ElementTree as ET
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.report import charts
from anabranch.report.relation import relation

TASK = {"probe": 0.5, "delta": 0.75, "shared": None, "majority": 0.25, "chosen": "delta",
        "rungs": {"probe": {"error": 0.1, "kilobytes": 2.0, "seconds": 0.001}, "delta": {"error": 0.0, "kilobytes": 80.0, "seconds": None}}}  # fmt: skip


def read(drawn) -> ET.Element:
    return ET.fromstring(str(drawn))  # well-formed XML


def pixels(uri: str) -> list[list[tuple[int, ...]]]:
    data, out, at = base64.b64decode(uri.removeprefix("data:image/png;base64,")), {}, 8
    while at < len(data):
        (n,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + n]
        assert struct.unpack(">I", data[at + 8 + n : at + 12 + n])[0] == zlib.crc32(kind + body)
        out[kind], at = body, at + 12 + n
    width, height = struct.unpack(">II", out[b"IHDR"][:8])
    raw = zlib.decompress(out[b"IDAT"])
    return [[tuple(raw[1 + r * (4 * width + 1) + 4 * c :][:4]) for c in range(width)] for r in range(height)]


def test_every_value_is_escaped():
    drawn = charts.tag("g", "<b>&", data_tip="\"'<script>", class_=None, stroke_width=2.0)
    assert str(drawn) == '<g data-tip="&#34;&#39;&lt;script&gt;" stroke-width="2">&lt;b&gt;&amp;</g>'


def test_a_picture_of_a_matrix_has_its_signs_and_sizes():
    found = pixels(charts.image([[1, -1, 0], [0.5, -2, -0.0]]))
    assert [[p[3] for p in row] for row in found] == [[255, 255, 0], [128, 255, 0]]
    assert found[0][0][:3] == found[1][0][:3] != found[0][1][:3] == found[1][1][:3]


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6))
def test_ticks_are_round_few_and_inside(low, span):
    found = charts.ticks(low, low + span)
    assert len(found) <= 8 and all(low - 1e-6 * span <= t <= low + span * (1 + 1e-6) for t in found)


@pytest.mark.parametrize(("low", "high"), [(0.3, 4), (1, 1000), (0.001, 0.0012), (5, 5.5), (1e-9, 1e9)])
def test_decades_are_inside(low, high):
    assert all(low <= t <= high for t in charts.decades(low, high))


def test_the_frontier_is_what_no_other_beats():
    assert charts.frontier([(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.6), (0.5, 0.5)]) == [(0.5, 0.5), (3, 0.5), (3, 0.7)]
    assert charts.frontier([]) == []


def test_labels_move_apart():
    assert charts.apart([10, 0, 11], 5) == [10, 0, 15]


def test_a_ladder_has_its_marks_in_place():
    root = read(charts.ladder(TASK, 0, 1, 216))
    marks = {e.get("data-tip").split()[0]: e for e in root if "mark" in (e.get("class") or "")}
    assert list(marks) == ["majority", "probe", "delta"]
    assert (
        marks["probe"].get("cx") == "108"
        and "hollow" in marks["probe"].get("class")
        and "hollow" not in marks["delta"].get("class")
    )
    whisker = next(e for e in root if e.get("class") == "whisker probe")
    assert float(whisker.get("x2")) - 108 == pytest.approx(200 * 1.96 * 0.1, abs=0.1)
    assert root.get("aria-label") == "majority 0.250, probe 0.500, delta 0.750"


def test_pareto_has_lines_means_and_their_frontier():
    tasks = {"a": TASK, "b<": TASK | {"chosen": "probe"}}
    root = read(charts.pareto(tasks, "kilobytes", "kilobytes a task"))
    assert [g.get("data-task") for g in root.iter("g")] == ["a", "b<"]
    assert "probe 0.500 at 2; delta 0.750 at 80; chosen 0.625 at 41" in root.get("aria-label")
    assert charts.pareto({"a": {**TASK, "rungs": {}}}, "kilobytes", "kB") is None
    only = read(charts.pareto(tasks, "seconds", "ms", 1000.0))  # the delta has no time: only the probe has a mean
    assert only.get("aria-label").endswith("means over all tasks: probe 0.500 at 1.00")
    for e in root.iter("circle"):
        assert 0 <= float(e.get("cx")) <= 720 and 0 <= float(e.get("cy")) <= 360


def test_a_cost_of_nothing_has_a_place():
    free = TASK | {"rungs": {"probe": {"kilobytes": 0.0}, "delta": {"kilobytes": 0.0}}}
    assert read(charts.pareto({"a": free}, "kilobytes", "kB")) is not None


def test_a_curve_shows_what_there_is():
    entries = [{"epoch": 1, "loss": 0.5, "valid": 0.25}, {"epoch": 2, "loss": 0.25, "valid": 0.75}, {"epoch": 3}]
    root = read(charts.curve(entries))
    assert (
        root.get("aria-label")
        == "Learning curve over 3 epochs: validation score from 0.250 to 0.750; training loss from 0.500 to 0.250"
    )
    assert charts.curve([]) is None and charts.curve([{"epoch": 1}]) is None
    assert read(charts.curve([{"epoch": 1, "loss": 0.5}])) is not None


def test_confusions_are_counted_by_their_true_label():
    drawn, worst = charts.confusion([[0, 0, 3], [0, 1, 1], [1, 1, 2]], ["a", "b<"])
    root = read(drawn)
    image = next(e for e in root.iter("image"))
    assert [[p[3] for p in row] for row in pixels(image.get("href"))] == [[191, 64], [0, 255]]
    assert worst == [{"truth": "a", "said": "b<", "n": 1, "share": 0.25}]
    many = [[i, (i + 1) % 90, 1] for i in range(90)] + [[i, i, 1] for i in range(90)]
    assert "30 labels" in read(charts.confusion(many, [f"l{i}" for i in range(90)])[0]).get("aria-label")


def test_kin_stand_together_and_the_graph_keeps_the_strongest():
    names, matrix = ["a", "x", "b", "y"], [[1, 0.0, 0.9, 0.0], [0.0, 1, 0.0, 0.8], [0.9, 0.0, 1, -0.4], [0.0, 0.8, -0.4, 1]]
    found = relation(names, matrix)
    order = found["names"]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset("ab"), frozenset("xy")}
    assert found["helps"] == [("b", "a", 0.9), ("y", "x", 0.8)] and found["hurts"] == [("y", "b", -0.4)] and found["most"] == 0.9
    assert found["groups"]["a"] == found["groups"]["b"] != found["groups"]["x"]
    graph = read(found["graph"])
    assert [e.get("class") for e in graph.iter("line")].count("edge hurts") == 1
    assert relation(names, matrix)["graph"] == found["graph"]  # the same each time
    assert read(found["heat"]).get("aria-label").startswith("Cosines between 4 tasks")


@pytest.mark.parametrize(
    "matrix", [[[1, 1], [1, 1]], [[1, -1], [-1, 1]], [[1, float("nan")], [float("nan"), 1]], [[0, 0], [0, 0]]]
)
def test_odd_matrices_are_drawn(matrix):
    found = relation(["a", "b"], matrix)
    read(found["heat"]), read(found["graph"])
    assert "nan" not in found["heat"] + found["graph"]


def test_numbers_are_short():
    assert [charts.number(v) for v in (None, 0.5, 1234, 1234.5, 12.345)] == ["–", "0.500", "1,234", "1,234", "12.3"]
    assert not re.search("e", charts.number(1e7))
