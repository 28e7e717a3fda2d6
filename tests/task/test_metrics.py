"""Metrics against numbers by hand, scikit-learn and scipy."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from anabranch.errors import InputError
from anabranch.task import metrics

LABELS = ["O", "B-x", "I-x", "B-y", "I-y"]
TRUTH, PRED = [0, 1, 2, 2, 1, 0, 2], [0, 2, 2, 2, 1, 1, 2]


@pytest.mark.parametrize(("name", "want"), [
    ("accuracy", sk.accuracy_score(TRUTH, PRED)), ("macro_f1", sk.f1_score(TRUTH, PRED, average="macro")),
    ("micro_f1", sk.f1_score(TRUTH, PRED, average="micro")), ("mcc", sk.matthews_corrcoef(TRUTH, PRED)),
])  # fmt: skip
def test_classes_as_scikit_learn_has_them(name: str, want: float) -> None:
    assert metrics.score(name, TRUTH, PRED) == pytest.approx(want)


def test_multilabel_counts_labels() -> None:
    truth, pred = [[0, 1], [2], []], [[0], [2, 1], []]  # 2 right of 3 told, 3 true
    assert metrics.score("micro_f1", truth, pred, labels=["a", "b", "c"]) == pytest.approx(2 * 2 / (3 + 3))
    assert metrics.score("macro_f1", truth, pred, labels=["a", "b", "c"]) == pytest.approx((1 + 0 + 1) / 3)


def test_correlations_are_means_over_targets() -> None:
    rng = np.random.default_rng(0)
    truth, pred = rng.normal(size=(20, 2)), rng.normal(size=(20, 2))
    for name, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        want = np.mean([of(truth[:, j], pred[:, j])[0] for j in range(2)])
        assert metrics.score(name, truth.tolist(), pred.tolist()) == pytest.approx(want)
        assert metrics.score(f"mean_{name}", truth.tolist(), pred.tolist()) == pytest.approx(want)
    assert metrics.score("pearson", [[1.0], [2.0]], [[3.0], [3.0]]) == 0.0  # a constant correlates with nothing


@pytest.mark.parametrize(("tags", "want"), [
    ("B-x I-x O B-y", {("x", 0, 2), ("y", 3, 4)}), ("O O", set()), ("I-x I-x", {("x", 0, 2)}),
    ("B-x B-x", {("x", 0, 1), ("x", 1, 2)}), ("B-x I-y", {("x", 0, 1), ("y", 1, 2)}), ("B-x", {("x", 0, 1)}),
])  # fmt: skip
def test_spans_by_hand(tags: str, want: set) -> None:
    assert metrics.spans(tags.split()) == want


def test_span_f1_by_hand() -> None:
    truth, pred = [[1, 2, 0, 3]], [[1, 2, 3, 0]]  # one of two right, two told
    assert metrics.score("span_f1", truth, pred, labels=LABELS) == pytest.approx(0.5)
    assert metrics.score("span_f1", [[0]], [[0]], labels=LABELS) == 1.0
    assert metrics.score("token_accuracy", truth, pred) == pytest.approx(0.5)
    assert metrics.score("token_f1", truth, pred, labels=LABELS) == pytest.approx(2 / 3)  # 2 hits, 3 told, 3 true


def test_ranking_by_hand() -> None:
    assert metrics.score("ndcg@10", [["a"]], [["b", "a"]]) == pytest.approx(1 / math.log2(3))
    assert metrics.score("ndcg@10", [["a", "b"]], [["a", "b", "c"]]) == 1.0
    assert metrics.score("ndcg@1", [["a"]], [["b", "a"]]) == 0.0
    assert metrics.score("recall@5", [["a", "z"]], [["b", "a"]]) == 0.5


def test_auc_of_two_classes_and_of_labels() -> None:
    scores = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]
    assert metrics.score("auc", [0, 1, 1, 0], [0, 1, 0, 1], scores, ["a", "b"]) == sk.roc_auc_score(
        [0, 1, 1, 0], [0.1, 0.8, 0.4, 0.7]
    )
    assert metrics.score("auc", [[0], [1], []], [[0], [1], []], [[0.9, 0.1], [0.2, 0.8], [0.1, 0.3]], ["a", "b"]) == 1.0


def test_exact_match_reads_words() -> None:
    assert metrics.score("exact_match", ["a  b", "c"], ["a b", "d"]) == 0.5


@pytest.mark.parametrize("name", ["acuracy", "ndcg@x", "accuracy@5", "ndcg@0"])
def test_unknown_metrics_name_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match=f"no metric '{name}'.*(accuracy|ndcg@10)"):
        metrics.find(name)


def test_spread_is_the_standard_error_of_a_mean() -> None:
    truth, pred = [1] * 400, [1] * 300 + [0] * 100
    assert metrics.spread("accuracy", truth, (pred, None), times=300) == pytest.approx((0.75 * 0.25 / 400) ** 0.5, rel=0.2)
    assert metrics.spread("accuracy", truth, (pred, None), (pred, None)) == 0.0
