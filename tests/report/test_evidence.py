"""What is told of a rung's answers: intervals by hand, doubts by hand, the worst answers first."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine import _tiny as tiny

from anabranch.report.evidence import ROWS, Watched, cut, distance, doubtful, error, wrong
from anabranch.task.label import Rows


def job(
    rows: Rows | None = None,
    labels: list[str] = (),
    words: bool = False,
    documents: Any = None,
    std: Any = None,
    metric="accuracy",
):
    kind = SimpleNamespace(labels=list(labels), words=words, mean=std and [0.0], std=std)
    return SimpleNamespace(metric=metric, kind=kind, documents=documents, task=SimpleNamespace(test=rows))


def rows(text: list[str], label: list[Any], **more: Any) -> Rows:
    return Rows(text, **({"text_b": None, "tokens": None, "choices": None} | more), label=label)


def test_the_error_of_an_accuracy_is_that_of_a_share():
    for n in (100, 4 * ROWS):
        truth = [0] * n
        said = [int(i % 4 == 0) for i in range(n)]  # three quarters right
        assert error(job(), truth, said, None, 0) == pytest.approx((0.75 * 0.25 / n) ** 0.5, rel=0.35)
    assert error(job(), [0], [0], None, 0) is None and error(job(), [0] * 9, [0] * 9, None, 0) == 0
    assert error(job(), truth, said, None, 1) == error(job(), truth, said, None, 1) != error(job(), truth, said, None, 2)


def test_a_label_is_doubted_where_another_class_is_as_sure_as_on_its_own_rows():
    scores = [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]]
    # by class, the mean of its own probability: (0.9 + 0.7 + 0.1) / 3 = 0.567 and (0.8 + 0.6) / 2 = 0.7
    assert doubtful([0, 0, 1, 1, 0], scores) == 1  # the last: 0.9 is at least 0.7, and it is labelled 0
    assert doubtful([0, 0, 1, 1, 1], scores) == 0
    assert doubtful([0, 0], [[0.9, 0.1], [0.8, 0.2]]) == 0  # a class without rows is no suspect


@pytest.mark.parametrize(
    ("made", "truth", "said", "scores", "far"),
    [
        (job(labels=["a", "b"]), 0, 0, [0.9, 0.1], 0), (job(labels=["a", "b"]), 1, 0, [0.9, 0.1], 0.9),
        (job(labels=["a", "b"]), [0, 1], [1], [0.1, 0.9], 1), (job(labels=["O", "B-A"], words=True), [0, 1, 0, 0], [0, 0, 0, 0], [1], 0.25),
        (job(std=[2.0]), [3.0], [7.0], [7.0], 2), (job(documents={"d": 0}), ["d"], ["e", "d"], [1, 1], 0.5),
        (job(documents={"d": 0}), ["d"], ["d"], [1], 0), (job(documents={"d": 0}), ["d"], ["e"], [1], 1),
        (job(), "a b", "a  b", "", 0), (job(), "a", "b", "", 1),
    ],
)  # fmt: skip
def test_how_wrong_an_answer_is(made, truth, said, scores, far):
    assert distance(made, truth, said, scores) == far


def test_the_surest_wrong_answers_come_first_and_are_named():
    made = job(rows(["x", "y", "z"], [0, 1, 1]), labels=["no", "yes"])
    found = wrong(made, [0, 0, 0], [[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]])
    assert found == [{"text": t, "truth": "yes", "said": "no", "sure": p} for t, p in (("z", 0.8), ("y", 0.6))]
    many = job(rows(["x"] * 99, [0] * 99), labels=["no", "yes"])
    assert len(wrong(many, [1] * 99, [[0.1, 0.9]] * 99)) == 8


def test_examples_of_every_kind_are_in_words():
    tag = job(rows(["a b c"], [[0, 1, 0]], tokens=[["a", "b", "c"]]), labels=["O", "B-X"], words=True)
    assert wrong(tag, [[0, 0, 0]], [[1, 1, 1]]) == [{"text": "a b c", "truth": "b/B-X", "said": "b/O"}]
    choice = job(rows(["q"], [1], choices=[["one", "two"]]))
    assert wrong(choice, [0], [[0.75, 0.25]]) == [{"text": "q", "truth": "two", "said": "one", "sure": 0.75}]
    pair = job(rows(["a"], [[4.0]], text_b=["b"]), std=[1.0])
    assert wrong(pair, [[2.5]], [[2.5]]) == [{"text": "a", "text_b": "b", "truth": "4", "said": "2.5"}]
    several = job(rows(["a"], [[0, 1]]), labels=["p", "q"])
    assert wrong(several, [[]], [[0.1, 0.2]]) == [{"text": "a", "truth": "p, q", "said": "none"}]
    assert len(cut("a" * 999)) == 300 and cut("short") == "short"


def test_a_watched_view_asks_once_and_knows_its_pace():
    asked = []

    class View:
        def __call__(self, units):
            asked.append(units)
            return np.zeros((len(units), 2))

        def speak(self, units):
            asked.append(units)
            return ["a"] * len(units)

    view = Watched(View(), SimpleNamespace(length=lambda u: 16))  # type: ignore[arg-type]
    assert view.pace is None
    assert view([1, 2]) is view([1, 2]) and view.speak([3]) is view.speak([3])
    assert asked == [[1, 2], [3]] and view.tokens == 48 and view.pace == view.seconds / 48


def test_a_fit_tells_of_every_rung():
    for name, t in tiny.fitted("bert")[1]["tasks"].items():
        for rung in t["rungs"].values():
            assert set(rung) == {"valid", "test", "error", "kilobytes", "seconds"} and rung["error"] >= 0 and rung["seconds"] > 0
        assert t["rungs"]["probe"]["kilobytes"] <= t["rungs"]["delta"]["kilobytes"]
        assert t["rungs"][t["chosen"]]["kilobytes"] == pytest.approx(t["kilobytes"])
        assert len(t["wrong"]) <= 8 and (t["wrong"] or t["test"] == 1 or name == "multilabel")
        if name in ("classify", "pair"):
            right = sum(n for a, b, n in t["confusion"] if a == b)
            assert sum(n for *_, n in t["confusion"]) == t["n_test"] and right / t["n_test"] == pytest.approx(t["test"])
            assert t["doubtful"] <= t["n_test"] - right + t["n_test"] * 0.5
