"""The report: everything that was asked for is in it, it loads nothing, nothing becomes markup, and it stays small."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from engine import _tiny as tiny
from serve._html import NASTY, Page

from anabranch.errors import InputError, WorkError
from anabranch.report import html

SECTIONS = ("asked", "data", "ladder", "cost", "map", "tasks", "more", "use", "versions")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny.copied(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def text(run) -> str:
    assert html.write(run) == run / "report.html"
    return (run / "report.html").read_text(encoding="utf-8")


def many(n: int) -> dict[str, Any]:
    """Results of ``n`` tasks."""
    results = json.loads(json.dumps(tiny.fitted("bert")[1]))
    old = list(results["tasks"].values())
    results["tasks"] = {f"task {i}": old[i % len(old)] for i in range(n)}
    matrix = [[1.0 if i == j else ((i * j) % 19 - 9) / 10 for j in range(n)] for i in range(n)]
    results["related"] = {"measure": "cosine", "tasks": list(results["tasks"]), "matrix": matrix}
    return results


def written(place: Path, results: Any) -> str:
    place.mkdir(exist_ok=True)
    plain = {name: value for name, value in results.items() if name != "sum"}  # it is that of what a fit wrote
    (place / "results.json").write_text(json.dumps(plain))
    return html.write(place).read_text(encoding="utf-8")


def test_it_has_all_its_parts(text):
    page = Page(text)
    assert {a.get("id") for a in page.all("section")} >= set(SECTIONS)
    assert [a["href"] for a in page.all("a")][1 : len(SECTIONS) + 1] == [f"#{s}" for s in SECTIONS]
    results = tiny.fitted("bert")[1]
    labels = " | ".join(a.get("aria-label", "") for a in page.all("svg"))
    for part in (
        "Test score against kilobytes",
        "Test score against milliseconds",
        "Cosines between 7",
        "pairs help",
        "Learning curve",
        "Confusion matrix",
        "Seconds of each stage",
    ):
        assert part in labels, part
    plain = re.sub(r"<[^>]+>", "", text)
    for name, t in results["tasks"].items():
        assert f"{t['test']:.3f}*" in plain and all(w["text"] in plain for w in t["wrong"]), name
    assert results["versions"]["torch"] in plain and "lora" in plain and "by_task" in plain and "backbone: " in plain
    assert [line for line in plain.splitlines() if "anabranch predict" in line and "--task classify" in line]
    assert "ab.load(" in plain and "/v1/predict" in plain


def test_every_link_inside_leads_somewhere(text):
    page = Page(text)
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids)) and {a["href"][1:] for a in page.all("a")} <= set(ids)


def test_it_loads_nothing(text):
    page = Page(text)
    assert not page.all("link") and all("src" not in a for a in page.all("script"))
    for _, attributes in page.tags:
        for key in ("src", "href", "action", "srcset", "data", "poster"):
            assert re.match(r"#|data:", attributes.get(key) or "#"), attributes
    assert not re.search(r"https?://|@import|url\(", text)
    policy = page.all("meta")[2]["content"]
    assert policy.startswith("default-src 'none'") and html.digest(html.asset("page.js")) in policy


def test_the_same_results_give_the_same_report(run, text):
    assert html.page(run) == text


def test_data_findings_are_listed(tmp_path):
    results = many(3)
    for t in results["tasks"].values():
        t |= {"counts": dict.fromkeys(t["counts"], 0), "doubtful": None}
    results["tasks"]["task 1"]["counts"] |= {"duplicates": 12, "leaks": 7}
    results["tasks"]["task 1"] |= {"warnings": ["duplicates: 12 (first: a.csv, line 3)"], "doubtful": 5}
    found = re.sub(r"<[^>]+>", " ", written(tmp_path, results))
    assert re.search(r"task 1\s+12\s+7\s+5\s", found) and "a.csv, line 3" in found and "2 of 3 tasks have nothing odd" in found


def test_what_another_100_tasks_would_cost():
    tasks = {n: {"kilobytes": k, "rungs": {"probe": {"kilobytes": 10.0}}} for n, k in (("a", 100.0), ("b", 300.0))}
    found = html.hundred({"tasks": tasks, "stages": {"look": 1.0, "features": 2.0, "probe": 1.0, "delta": 12.0, "share": 99.0}})
    assert found[:2] == [("disk and memory", "20.0 MB", "1.0 MB"), ("fitting, on this machine", "13.3 min", "3.3 min")]


def test_gates_are_shown_where_there_are_any(tmp_path, text):
    gates = {
        "measure": "mean weight over test rows",
        "tasks": ["a", "b"],
        "slots": ["expert 1", "expert 2"],
        "weights": [[0.9, 0.1], [0.5, 0.5]],
    }
    assert "Use of the gates" in written(tmp_path, many(2) | {"gates": gates}) and "Use of the gates" not in text


def test_nothing_becomes_markup(tmp_path):
    results = json.loads(json.dumps(many(3)).replace("task 1", json.dumps(NASTY)[1:-1]))
    for t in results["tasks"].values():
        t |= {"labels": [NASTY] * 4, "wrong": [{"text": NASTY, "truth": NASTY, "said": NASTY}], "warnings": [NASTY]}
    results |= {
        "notes": [NASTY],
        "backbone": NASTY,
        "gates": {"measure": NASTY, "tasks": [NASTY], "slots": [NASTY], "weights": [[1]]},
    }
    (tmp_path / "plan.json").write_text(json.dumps({"backbone": NASTY, "tasks": {NASTY: {"data": NASTY}}}))
    made = written(tmp_path, results)
    page = Page(made)
    assert "<script>alert" not in made and "<img src=x" not in made and not page.all("img")
    assert [a.get("type") for a in page.all("script")] == ["application/json", None]


def test_500_tasks_stay_below_5_megabytes_and_some_seconds(tmp_path):
    begun = time.process_time()
    made = written(tmp_path, many(500))
    assert len(made) < 5e6 and time.process_time() - begun < 30


def test_results_of_an_older_version_are_shown_without_what_they_lack(tmp_path):
    results = many(3)
    for t in results["tasks"].values():
        t["rungs"] = {n: {"valid": r["valid"], "test": r["test"]} for n, r in t["rungs"].items()}
        for key in ("labels", "confusion", "doubtful", "wrong", "curve"):
            t.pop(key)
    results = {k: results[k] for k in ("format", "tasks", "stages", "seed")}
    made = written(tmp_path, results)
    assert "Not measured by the version" in made and "Not kept by the version" in made and "The stage relate was not run" in made


def test_one_task_has_no_map(tmp_path):
    assert "One task has no companion" in written(tmp_path, many(1))


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(InputError, match="not a finished run"):
        html.write(tmp_path)
    (tmp_path / "results.json").write_text('{"tasks": {"a": {"single": 1, "merged": 1}}, "mean_merged": 1}')
    with pytest.raises(InputError, match="is a merge"):
        html.write(tmp_path)
    for damaged in ('{"tasks": {"a": {}}}', '{"tasks": {"a": 3}}', '{"tasks": {}, "versions": 3}'):
        (tmp_path / "results.json").write_text(damaged)
        with pytest.raises(WorkError, match=r"results\.json is damaged"):
            html.write(tmp_path)
    assert not (tmp_path / "report.html").exists() and not list(tmp_path.glob("*.part"))


def test_a_run_of_no_tasks_is_shown(tmp_path):
    assert "0 tasks" in written(tmp_path, {"tasks": {}})


@pytest.mark.parametrize(("seconds", "said"), [(None, "–"), (5, "5.0 s"), (600, "10.0 min"), (9000, "2.5 h")])
def test_durations(seconds, said):
    assert html.duration(seconds) == said
