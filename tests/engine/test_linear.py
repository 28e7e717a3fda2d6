"""The probe against scikit-learn, and how outputs become answers and scores."""

from typing import Any

import numpy as np
import pytest
import torch
from engine import _tiny as tiny
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier

from anabranch.engine import linear
from anabranch.engine.backbone import backbone_of
from anabranch.engine.features import Features
from anabranch.engine.job import Head, Job, apply, fresh, job_of
from anabranch.task import kind as kinds
from anabranch.task.data import load_task
from anabranch.task.plan import TaskSpec

N, D = 150, 12


def job(name: str, folder: Any = None, tail: int = 1, backbone: str = "bert", **more: Any) -> tuple[Job, Features]:
    spec = TaskSpec(data=str(folder or tiny.home() / "data" / name), **more)
    features = Features(backbone_of(str(tiny.home() / backbone), "float32"), None, tail)
    made = job_of(load_task(name, spec), features)
    return made, features


def plain(outputs: int) -> Head:
    """A head that sees its inputs as they are."""
    return {"W": torch.zeros(outputs, D), "b": torch.zeros(outputs), "mean": torch.zeros(D), "scale": torch.ones(D)}


@pytest.fixture(scope="module")
def x():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


# ---- solve


@pytest.mark.parametrize("c", [1.0, 10.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_classes_as_logistic_regression_has_them(x, c, classes):
    rng = torch.Generator().manual_seed(1)
    y = (x @ torch.randn(D, classes, generator=rng) + torch.randn(N, classes, generator=rng)).argmax(1)
    kind = kinds.find("classify")([str(i) for i in range(classes)])
    head = linear.solve(kind, x, y, [1] * N, c, plain(classes))
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=2000).fit(x, y)
    if classes == 2:  # scikit-learn has one row of weights, the difference of ours, and penalises it as if it were both
        loss = float(torch.nn.functional.cross_entropy(apply(head, x), y) + head["W"].square().sum() / (2 * c * N))
        best = LogisticRegression(C=2 * c, tol=1e-8, max_iter=2000).fit(x, y)  # W = +-w / 2 costs half of w
        w, b = torch.tensor(best.coef_[0]).float(), float(best.intercept_[0])
        np.testing.assert_allclose(head["W"][1] - head["W"][0], w, atol=1e-3)
        same = {"W": torch.stack([-w / 2, w / 2]), "b": torch.tensor([-b / 2, b / 2])}
        wanted = torch.nn.functional.cross_entropy(apply(plain(2) | same, x), y) + same["W"].square().sum() / (2 * c * N)
        assert loss == pytest.approx(float(wanted), abs=1e-5)
        return
    np.testing.assert_allclose(head["W"], theirs.coef_, atol=1e-3)
    np.testing.assert_allclose(head["b"] - head["b"].mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-3)
    np.testing.assert_allclose(torch.softmax(apply(head, x), 1), theirs.predict_proba(x), atol=1e-3)


@pytest.mark.parametrize("c", [1.0, 10.0])
def test_label_sets_as_one_logistic_regression_a_label(x, c):
    y = (x[:, :3] + x[:, 3:6] > 0.3).float()
    head = linear.solve(kinds.find("multilabel")(["a", "b", "c"]), x, y, [1] * N, c, plain(3))
    theirs = MultiOutputClassifier(LogisticRegression(C=c, tol=1e-8, max_iter=2000)).fit(x, y)
    for i, one in enumerate(theirs.estimators_):
        np.testing.assert_allclose(head["W"][i], one.coef_[0], atol=1e-3)
        np.testing.assert_allclose(head["b"][i], one.intercept_[0], atol=1e-3)


@pytest.mark.parametrize("c", [1.0, 10.0])
def test_numbers_as_ridge_regression(x, c):
    y = torch.stack([x[:, 0] - x[:, 1] + 3, x[:, 2] ** 2], 1)
    head = linear.solve(kinds.find("regress")([], False, [0.0, 0.0], [1.0, 1.0]), x, y, [1] * N, c, plain(2))
    theirs = Ridge(alpha=1 / (2 * c)).fit(x, y)
    np.testing.assert_allclose(head["W"], theirs.coef_, atol=1e-3)
    np.testing.assert_allclose(head["b"], theirs.intercept_, atol=1e-3)


def test_choices_are_one_scorer_for_all(x):
    """Two choices with one scorer are logistic regression on the difference of what it sees."""
    kind, counts = kinds.find("choice")(), [3] * (N // 2)
    truth = (x[0::2, 0] < x[1::2, 0]).long()
    start = {"W": torch.zeros(1, D), "b": torch.zeros(1), "mean": torch.zeros(D), "scale": torch.ones(D)}
    head = linear.solve(kind, x, truth, counts, 10.0, start)
    theirs = LogisticRegression(C=10.0, fit_intercept=False, tol=1e-8, max_iter=2000).fit(x[1::2] - x[0::2], truth)
    np.testing.assert_allclose(head["W"], theirs.coef_, atol=2e-3)


def test_a_fresh_head_centres_and_scales_each_part():
    x = torch.cat([5 + 0.01 * torch.randn(40, 6), 100 * torch.randn(40, 6)], 1)
    head = fresh(3, x, 6)
    seen = (x - head["mean"]) * head["scale"]
    assert not apply(head, x).any() and seen.mean(0).abs().max() < 1e-4
    for part in seen.split(6, dim=1):
        assert part.norm(dim=1).mean() == pytest.approx(1, abs=1e-4)
    assert torch.isfinite(apply(fresh(2, torch.ones(5, 6), 6), torch.ones(5, 6))).all()  # nothing to scale
    wide = torch.cat([x, torch.randn(40, 4)], 1)
    assert torch.equal(apply(head, wide), apply(head, x)) and apply({}, x) is x


def test_rounding_is_what_is_stored():
    head = linear.rounded({"W": torch.randn(3, 4)})
    assert torch.equal(head["W"], head["W"].bfloat16().float()) and torch.equal(linear.rounded(head)["W"], head["W"])


# ---- probe, settle, answers


@pytest.mark.parametrize("name", ["classify", "multilabel", "regress", "tag", "pair", "choice"])
def test_the_probe_beats_the_constant_answer_and_is_the_best_of_its_path(name, tmp_path):
    made, features = job(name)
    features.folder = tmp_path
    features.run()
    head, how = linear.probe(made, features)
    view = linear.frozen(features, made)
    valid = made.parts["valid"]

    def loss(h: Head) -> float:
        out, counts = linear.outputs(made, valid, features, view, h)
        return float(made.kind.loss(out, valid.y, counts).mean())

    assert how["strength"] in linear.PENALTIES and head["W"].shape[1] == how["inputs"]
    start = fresh(
        *made.kind.width(32)[:1],
        linear.inputs(made, made.parts["train"].units, view, made.counts(features, made.parts["train"].units), 32),
        32,
    )
    assert loss(head) < loss(start)
    post = linear.settle(made, features, view, head)
    found = linear.answers(made, made.parts["test"], features, view, head, post)
    assert linear.measure(made, made.parts["test"], found) > linear.majority(made, made.parts["test"])
    assert len(found[0]) == len(found[1]) == 24


def test_no_rows_are_no_score():
    made, features = job("classify")
    empty = type(made.parts["test"])([], [], [])
    assert linear.measure(made, empty, ([], [])) is None and linear.majority(made, empty) is None
    assert linear.answers(made, empty, features, linear.frozen(features, made), {}, {}) == ([], [])


def test_majority_by_hand(tmp_path):
    def of(name: str, train: list[Any], kind: str, test: list[Any], **more: Any) -> float | None:
        for split, part in (("train", train), ("valid", train), ("test", test)):
            made = [
                {"text": f"w{i % 9}", "text_b": "the", "tokens": ["the"] * 3, "choices": ["a", "b"], "label": y}
                for i, y in enumerate(part)
            ]
            if kind != "tag":
                made = [{k: v for k, v in row.items() if k != "tokens"} for row in made]
            tiny.lines(tmp_path / name / f"{split}.jsonl", made)
        one, _ = job(name, tmp_path / name, kind=kind, **more)
        return linear.majority(one, one.parts["test"])

    assert of("a", ["x", "x", "y"], "classify", ["y", "x", "y", "x", "y"]) == 0.4
    sets = [["p"], ["p", "q"], ["p", "r"], ["q"], ["p"]]  # p alone: 2*4/(5+7), p and q: 2*6/(10+7), all: 2*7/(15+7)
    assert of("b", sets, "multilabel", [["p", "q"], ["r"]], labels=["p", "q", "r"]) == pytest.approx(2 * 2 / (4 + 3))
    rare = [["p"]] + [["q"]] * 9
    assert of("c", rare, "multilabel", [["q"], ["p"]], labels=["p", "q"]) == pytest.approx(2 * 1 / (2 + 2))
    assert of("d", [[0, 1, 0], [0, 0, 1]], "tag", [[0, 1, 0]], labels=["O", "N"], metric="token_accuracy") == pytest.approx(2 / 3)
    assert of("e", [1.0, 2.0], "regress", [1.0, 3.0]) == 0.0
    assert of("f", [0, 1, 1], "choice", [0, 0, 0, 1]) == 0.75
    assert of("g", ["x", "x", "y"], "pair", ["y", "x"]) == 0.5


def test_words_behind_the_longest_length_get_the_common_label(tmp_path):
    made = [{"tokens": ["the"] * 40, "label": ["A"] * 30 + ["B"] * 10} for _ in range(4)]
    for split in ("train", "valid", "test"):
        tiny.lines(tmp_path / "t" / f"{split}.jsonl", made)
    one, features = job("t", tmp_path / "t", kind="tag", max_length=16)
    features.folder = tmp_path / "f"
    features.run()
    assert one.counts(features, one.parts["test"].units) == [14] * 4
    head = {"W": torch.zeros(2, 32), "b": torch.tensor([0.0, 9.0]), "mean": torch.zeros(32), "scale": torch.ones(32)}
    pred, _ = linear.answers(one, one.parts["test"], features, linear.frozen(features, one), head, {})
    assert pred == [[1] * 14 + [0] * 26] * 4
    assert linear.measure(one, one.parts["test"], (pred, pred)) == pytest.approx(16 / 40)


def test_ranking_is_by_cosine():
    index = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    ids, scores = linear.ranked(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), index, ["a", "b", "c"])
    assert ids == [["b", "c", "a"], ["a", "c", "b"]] and scores[0] == pytest.approx([1, 0.5**0.5, 0])
    many = torch.nn.functional.normalize(torch.randn(300, 2), dim=1)
    assert [len(r) for r in linear.ranked(torch.ones(1, 2), many, [str(i) for i in range(300)])[0]] == [100]


def test_speaking_is_the_same_alone_and_together():
    one, features = job("generate", backbone="gpt2")
    view = linear.frozen(features, one)
    units = [row[0] for row in one.parts["test"].units]
    together = view.speak(units)
    assert together == [view.speak([u])[0] for u in units] and any(together)
    [long] = features.add(features.backbone.spoken(["red " * 500], [None], 128))
    assert len(view.speak([long])) == 1  # there is no position left for all 32 tokens
