"""Claims: how comparisons are judged, what is kept, and the mistakes that users make."""

import json

import pytest

import anabranch.engine.claim as claims
from anabranch.engine.cache import read_json
from anabranch.errors import InputError, WorkError


def seeds(**ways):
    """way=[[numbers of seed 0], [of seed 1]] -> one dict per seed."""
    count = len(next(iter(ways.values())))
    return [{w: {f"t{i}": v for i, v in enumerate(found[s])} for w, found in ways.items()} for s in range(count)]


def test_the_interval_is_students_by_hand():
    mean, (low, high) = claims.interval([1.0, 2.0, 3.0, 4.0])  # s = 1.29099, t(0.975, 3) = 3.18245
    assert mean == 2.5 and low == pytest.approx(2.5 - 3.18245 * 1.29099 / 2, abs=1e-4) and high == pytest.approx(5 - low)
    assert claims.interval([0.25]) == (0.25, (0.25, 0.25))


@pytest.mark.parametrize(
    ("text", "verdict", "mean"),
    [
        ("a > b", "held", 0.1), ("b > a", "not held", -0.1), ("b < a", "held", -0.1), ("a > c", "inconclusive", 0.0),
        ("a >= b + 0.05", "held", 0.05), ("a >= b + 0.2", "not held", -0.1), ("b >= a - 0.2", "held", 0.1),
        ("a > a", "not held", 0.0), ("a >= a", "held", 0.0), ("size <= 0.2", "held", -0.1), ("size < 0.1", "not held", 0.0),
    ],
)  # fmt: skip
def test_verdicts(text, verdict, mean):
    numbers = seeds(a=[[0.5, 0.6], [0.7, 0.8]], b=[[0.4, 0.51], [0.59, 0.7]], c=[[0.9, 0.2], [0.4, 1.1]], size=[[0.1], [0.1]])
    found = claims.compare(text, numbers)
    assert found["verdict"] == verdict and found["mean"] == pytest.approx(mean, abs=1e-9)
    assert found["pairs"] == (2 if "size" in text else 4)


def test_pairs_are_the_cases_that_both_have():
    numbers = [{"a": {"x": 1.0, "y": 5.0}, "b": {"x": 0.5, "z": 9.0}}]
    assert claims.compare("a > b", numbers) | {"claim": ""} == {
        "claim": "", "mean": 0.5, "interval": [0.5, 0.5], "pairs": 1, "verdict": "held"
    }  # fmt: skip


@pytest.mark.parametrize("text", ["a == b", "a >", "> b", "a > b * 2"])
def test_a_comparison_that_is_none(text):
    with pytest.raises(WorkError, match="a comparison is"):
        claims.compare(text, seeds(a=[[1.0]], b=[[2.0]]))


def test_an_unknown_way_is_named():
    with pytest.raises(WorkError, match="names 'c', measured are a, b"):
        claims.compare("a > c", seeds(a=[[1.0]], b=[[2.0]]))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A claim of two lines in place of the package's own; it counts how often it is asked."""
    source = tmp_path / "toy.py"
    source.write_text('"""A toy."""\n\nholds = ("a > b",)\n')
    asked = []

    class Module:
        __doc__ = "A toy."
        holds = ("a > b",)

        @staticmethod
        def claim(lab):
            asked.append(lab.seed)
            return {"a": {"x": 1.0 + lab.seed, "y": 2.0}, "b": {"x": 0.5 + lab.seed, "y": 1.4}}

    monkeypatch.setattr(claims, "claim_of", lambda id: source)
    monkeypatch.setattr(claims, "module_of", lambda id: Module)
    monkeypatch.setattr(claims, "cache_dir", lambda: tmp_path / "cache")
    return asked


def test_what_was_measured_is_kept_and_the_same_twice(toy, tmp_path):
    first = claims.run("toy", seeds=2)
    assert toy == [0, 1] and first["verdict"] == "held" and first["seeds"] == [0, 1]
    again = claims.run("toy", seeds=3)  # only the third is new
    assert toy == [0, 1, 2] and again["numbers"]["a"]["cases"] == {"x": 2.0, "y": 2.0}
    assert claims.run("toy", seeds=2) == first
    path = claims.publish(first, tmp_path / "verdicts")
    assert path.name == "toy.json" and read_json(path)["verdict"] == "held"


def test_a_damaged_seed_is_measured_again(toy, tmp_path):
    claims.run("toy", seeds=1)
    (kept,) = (tmp_path / "cache").rglob("0.json")
    kept.write_text("{")
    told = []
    claims.run("toy", seeds=1, told=told.append)
    assert toy == [0, 0] and "measured again" in told[0] and json.loads(kept.read_text())["seed"] == 0


def test_a_number_that_is_none_stops(toy, monkeypatch):
    class Module:
        holds = ()

        @staticmethod
        def claim(lab):
            return {"a": {"x": float("nan")}}

    monkeypatch.setattr(claims, "module_of", lambda id: Module)
    with pytest.raises(WorkError, match="claim toy, seed 0: a of x is nan"):
        claims.run("toy", seeds=1)


def test_mistakes(tmp_path):
    with pytest.raises(InputError, match="--seeds is at least 1, got 0"):
        claims.run("task-arithmetic", seeds=0)
    with pytest.raises(InputError, match="there is no"):
        claims.run("task-arithmetic", data=tmp_path / "nowhere")
    with pytest.raises(InputError, match="task-arithmetic"):
        claims.ids_of("task-arithmetics", None)
    with pytest.raises(InputError, match="name a claim, or a family"):
        claims.ids_of(None, None)
    with pytest.raises(InputError, match="no claim in family 'nothing'"):
        claims.ids_of(None, "nothing")
    assert "task-arithmetic" in claims.ids_of(None, "merge")
