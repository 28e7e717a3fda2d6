"""Metrics by name: ``score("macro_f1", truth, pred, scores, labels)``; all in [-1, 1] or [0, 1], higher is better.

truth and pred are lists of a row's labels in the encoding of the task's kind: an index, a list of indices (multilabel,
tag), a list of numbers (regress), ids (retrieve: truth relevant, pred ranked), a string (generate).
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from anabranch.errors import InputError, nearest

Metric = Callable[..., float]


def accuracy(truth: Sequence[Any], pred: Sequence[Any], **_: Any) -> float:
    return float(np.mean([t == p for t, p in zip(truth, pred, strict=True)]))


def macro_f1(truth: Sequence[Any], pred: Sequence[Any], labels: Sequence[str] | None = None, **_: Any) -> float:
    return _f1(truth, pred, labels, "macro")


def micro_f1(truth: Sequence[Any], pred: Sequence[Any], labels: Sequence[str] | None = None, **_: Any) -> float:
    return _f1(truth, pred, labels, "micro")


def mcc(truth: Sequence[int], pred: Sequence[int], **_: Any) -> float:
    return float(sk.matthews_corrcoef(truth, pred))


def auc(truth: Sequence[Any], pred: Sequence[Any], scores: Any = None, labels: Sequence[str] | None = None, **_: Any) -> float:
    """Area under the ROC curve: of the second class for two, one-vs-rest macro mean for more, of each label for multilabel."""
    s, n = np.asarray(scores, float), len(labels or ())
    hot = _hot(truth, n) if isinstance(truth[0], (list, tuple)) else np.eye(n, dtype=int)[list(truth)]
    columns = [1] if n == 2 and not isinstance(truth[0], (list, tuple)) else range(n)
    both = [c for c in columns if 0 < hot[:, c].sum() < len(hot)]
    return float(np.mean([sk.roc_auc_score(hot[:, c], s[:, c]) for c in both])) if both else 0.5


def pearson(truth: Sequence[Any], pred: Sequence[Any], **_: Any) -> float:
    return _correlation(truth, pred, stats.pearsonr)


def spearman(truth: Sequence[Any], pred: Sequence[Any], **_: Any) -> float:
    return _correlation(truth, pred, stats.spearmanr)


mean_pearson, mean_spearman = pearson, spearman  # the mean over the targets, of which there may be one


def r2(truth: Sequence[Any], pred: Sequence[Any], **_: Any) -> float:
    return float(sk.r2_score(np.asarray(truth, float), np.asarray(pred, float)))


def token_accuracy(truth: Sequence[Sequence[int]], pred: Sequence[Sequence[int]], **_: Any) -> float:
    return float(np.mean(np.concatenate([np.equal(t, p) for t, p in zip(truth, pred, strict=True)])))


def token_f1(truth: Sequence[Sequence[int]], pred: Sequence[Sequence[int]], labels: Sequence[str] = (), **_: Any) -> float:
    """Micro F1 over the tokens whose class is not O."""
    keep = [i for i, name in enumerate(labels) if name != "O"]
    return float(sk.f1_score(np.concatenate(truth), np.concatenate(pred), labels=keep, average="micro", zero_division=0))


def span_f1(truth: Sequence[Sequence[int]], pred: Sequence[Sequence[int]], labels: Sequence[str] = (), **_: Any) -> float:
    """Exact-match F1 over BIO entities; an I- that continues nothing begins an entity, as CoNLL's script has it."""
    hit = made = true = 0
    for t, p in zip(truth, pred, strict=True):
        a, b = spans([labels[i] for i in t]), spans([labels[i] for i in p])
        hit, made, true = hit + len(a & b), made + len(b), true + len(a)
    return 2 * hit / (made + true) if made + true else 1.0


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """BIO tags -> {(type, first, past the last)}."""
    out, start, kind = set(), 0, ""
    for i, tag in enumerate([*tags, "O"]):
        head, _, name = tag.partition("-")
        if kind and (head != "I" or name != kind):
            out.add((kind, start, i))
            kind = ""
        if head in ("B", "I") and not kind:
            start, kind = i, name
    return out


def ndcg(truth: Sequence[Sequence[str]], pred: Sequence[Sequence[str]], k: int = 10, **_: Any) -> float:
    """Normalised discounted cumulative gain of the first k, every relevant document counting 1."""
    gain = 1 / np.log2(np.arange(2, k + 2))
    rows = []
    for relevant, ranked in zip(truth, pred, strict=True):
        hits = np.array([d in set(relevant) for d in ranked[:k]], float)
        rows.append(hits @ gain[: len(hits)] / gain[: max(1, min(k, len(set(relevant))))].sum())
    return float(np.mean(rows))


def recall(truth: Sequence[Sequence[str]], pred: Sequence[Sequence[str]], k: int = 5, **_: Any) -> float:
    """Share of the relevant documents among the first k."""
    return float(np.mean([len(set(t) & set(p[:k])) / len(set(t)) for t, p in zip(truth, pred, strict=True)]))


def exact_match(truth: Sequence[str], pred: Sequence[str], **_: Any) -> float:
    return float(np.mean([t.split() == p.split() for t, p in zip(truth, pred, strict=True)]))


NAMES = (
    "accuracy", "macro_f1", "micro_f1", "mcc", "auc", "pearson", "spearman", "mean_pearson", "mean_spearman", "r2",
    "token_accuracy", "token_f1", "span_f1", "ndcg", "recall", "exact_match",
)  # fmt: skip


def find(name: str) -> Metric:
    """The metric of that name; ``ndcg@10`` and ``recall@5`` carry their k."""
    base, _, k = name.partition("@")
    if base not in NAMES or (k and not (k.isdigit() and int(k) > 0 and base in ("ndcg", "recall"))):
        raise InputError(f"no metric {name!r}{nearest(name, [*NAMES, 'ndcg@10', 'recall@5'])}")
    return partial(globals()[base], k=int(k)) if k else globals()[base]


def score(name: str, truth: Sequence[Any], pred: Sequence[Any], scores: Any = None, labels: Sequence[str] | None = None) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant predictions make correlations undefined: they score 0
        value = find(name)(truth, pred, scores=scores, labels=labels)
    return value if np.isfinite(value) else 0.0


def spread(name: str, truth: Sequence[Any], a: tuple[Any, Any], b: tuple[Any, Any] | None = None,
           labels: Sequence[str] | None = None, times: int = 100, seed: int = 0) -> float:  # fmt: skip
    """Standard error of score(a), or of score(a) - score(b), by a paired bootstrap over rows; a, b = (pred, scores)."""
    rng, n, values = np.random.default_rng(seed), len(truth), []
    for _ in range(times):
        ids = rng.integers(0, n, n)
        cut = [truth[i] for i in ids]
        each = [
            score(name, cut, [p[i] for i in ids], None if s is None else np.asarray(s)[ids], labels)
            for p, s in filter(None, (a, b))
        ]
        values.append(each[0] - (each[1] if b else 0.0))
    return float(np.std(values))


def _hot(rows: Sequence[Sequence[int]], n: int) -> Any:
    out = np.zeros((len(rows), n), int)
    for i, row in enumerate(rows):
        out[i, list(row)] = 1
    return out


def _f1(truth: Sequence[Any], pred: Sequence[Any], labels: Sequence[str] | None, average: str) -> float:
    if isinstance(truth[0], (list, tuple)):  # multilabel
        n = len(labels or ())
        return float(sk.f1_score(_hot(truth, n), _hot(pred, n), average=average, zero_division=0))
    return float(sk.f1_score(truth, pred, average=average, zero_division=0))


def _correlation(truth: Sequence[Any], pred: Sequence[Any], of: Callable[..., Any]) -> float:
    t, p = np.asarray(truth, float).reshape(len(truth), -1), np.asarray(pred, float).reshape(len(pred), -1)
    values = [of(t[:, j], p[:, j])[0] if t[:, j].std() and p[:, j].std() else 0.0 for j in range(t.shape[1])]
    return float(np.mean(values))
