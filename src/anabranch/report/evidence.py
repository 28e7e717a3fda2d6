"""What a rung's answers on the test rows show: how sure its score is, what it mixes up, what it gets wrong, its pace."""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anabranch.core.adapt import Adapted
from anabranch.engine.choose import Rung
from anabranch.engine.features import Features
from anabranch.engine.job import Job
from anabranch.engine.linear import View, answers, index_of
from anabranch.engine.passes import encode
from anabranch.task.data import Rows
from anabranch.task.metrics import spread

ROWS, TIMES = 400, 40  # rows of a resample and resamples: what a standard error may cost
WRONG, CELLS, LENGTH = 8, 400, 300  # examples, cells of a confusion matrix, and characters of a text that are kept


class Watched:
    """A view that runs f once per batch of units, and knows how long a token took."""

    def __init__(self, view: View, features: Features) -> None:
        self.view, self.features, self.seconds, self.tokens = view, features, 0.0, 0
        self.kept: dict[tuple[int, ...], Tensor] = {}
        self.spoken: dict[tuple[int, ...], list[str]] = {}

    def __call__(self, units: Sequence[int]) -> Tensor:
        key = tuple(units)
        if key not in self.kept:
            begun = time.perf_counter()
            self.kept[key] = self.view(units)
            self._took(begun, units)
        return self.kept[key]

    def speak(self, units: Sequence[int]) -> list[str]:
        key = tuple(units)
        if key not in self.spoken:
            begun = time.perf_counter()
            self.spoken[key] = self.view.speak(units)
            self._took(begun, units)
        return self.spoken[key]

    def _took(self, begun: float, units: Sequence[int]) -> None:
        self.seconds += time.perf_counter() - begun
        self.tokens += sum(map(self.features.length, units))

    @property
    def pace(self) -> float | None:
        """Seconds a token."""
        return self.seconds / self.tokens if self.tokens else None


def pace(features: Features, units: Sequence[int], most: int = 128) -> float | None:
    """Seconds that f itself takes for a token, in full passes as a rung's rows have them: of units of the most common length.
    None without any."""
    if not units:
        return None
    common = Counter(map(features.length, units)).most_common(1)[0][0]
    live = Features(features.backbone, None, 0)
    some = live.add([features.tokens[u] for u in dict.fromkeys(units) if features.length(u) == common][:most])
    begun = time.perf_counter()
    with torch.no_grad():
        encode(live, Adapted(features.backbone.f, []), some, [0] * len(some), False)
    return (time.perf_counter() - begun) / (len(some) * common)


def evidence(job: Job, features: Features, view: View, rung: Rung, seed: int = 0) -> dict[str, Any]:
    """``{"error", "confusion"?, "doubtful"?, "wrong"}`` of a rung on the task's test rows.

    error: the standard error of its test score, by bootstrap; None below two rows. confusion: ``[true, said, n]``, label
    indices, most frequent first, rows or (tag) words. doubtful: rows whose label f doubts. wrong: the worst answers.
    """
    part = job.parts["test"]
    if not len(part):
        return {"error": None, "wrong": []}
    index = index_of(job, list(job.documents), features, view) if job.documents else None
    said, scores = answers(job, part, features, view, rung.head, rung.post, index)
    sure = scores if job.kind.labels and not job.kind.words else None
    out: dict[str, Any] = {"error": error(job, part.labels, said, sure, seed)}
    pairs = list(zip(part.labels, said, strict=True))
    if job.kind.words:
        pairs = list(chain.from_iterable(zip(t, s, strict=True) for t, s in pairs))
    if job.kind.labels and pairs and isinstance(pairs[0][0], int):
        out["confusion"] = [[t, s, n] for (t, s), n in Counter(pairs).most_common(CELLS)]
        if not job.kind.words:
            out["doubtful"] = doubtful(part.labels, scores)
    return out | {"wrong": wrong(job, said, scores)}


def error(job: Job, truth: list[Any], said: list[Any], scores: Any, seed: int) -> float | None:
    """From at most :data:`ROWS` rows, scaled to all: a standard error falls with the square root of their number."""
    n, rng = len(truth), np.random.default_rng(seed)
    if n < 2:
        return None
    ids = rng.choice(n, min(n, ROWS), replace=False)
    some = [said[i] for i in ids], scores and [scores[i] for i in ids]
    found = spread(job.metric, [truth[i] for i in ids], some, labels=job.kind.labels, times=TIMES, seed=seed)
    return round(found * (len(ids) / n) ** 0.5, 6)


def doubtful(truth: Sequence[int], scores: Sequence[Sequence[float]]) -> int:
    """Rows that confident learning would look at again (Northcutt et al. 2021, arXiv:1911.00068): another class is at least
    as sure as it is on the rows that carry its label. Wrong labels and hard rows look alike to a weak f."""
    p, y = np.asarray(scores, float), np.asarray(truth)
    bar = np.array([p[y == c, c].mean() if (y == c).any() else np.inf for c in range(p.shape[1])])
    sure = np.where(p >= bar, p, 0.0)
    return int(((sure.max(1) > 0) & (sure.argmax(1) != y)).sum())


def wrong(job: Job, said: Sequence[Any], scores: Sequence[Any]) -> list[dict[str, Any]]:
    """``{"text", "text_b"?, "truth", "said", "sure"?}`` of the worst answers, the worst first."""
    rows = job.task.test
    far = [distance(job, t, s, p) for t, s, p in zip(rows.label, said, scores, strict=True)]
    worst = sorted((i for i, d in enumerate(far) if d > 0), key=lambda i: -far[i])[:WRONG]
    return [example(job, rows, i, said[i], scores[i]) for i in worst]


def distance(job: Job, truth: Any, said: Any, scores: Any) -> float:
    """How wrong an answer is, 0 for a right one; of wrong classes, the surest are the worst."""
    if job.documents:
        return 1.0 - max((1 / (said.index(d) + 1) for d in truth if d in said), default=0.0)
    if job.kind.mean:
        spans = zip(truth, said, job.kind.std, strict=True)
        return max(abs(t - s) / std for t, s, std in spans)
    if job.kind.words:
        return sum(t != s for t, s in zip(truth, said, strict=True)) / max(1, len(truth))
    if isinstance(truth, list):
        return float(len(set(truth) ^ set(said)))
    if isinstance(truth, str):
        return float(truth.split() != said.split())
    return 0.0 if truth == said else max(scores)


def example(job: Job, rows: Rows, i: int, said: Any, scores: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"text": cut(rows.text[i])}
    if rows.text_b is not None:
        out["text_b"] = cut(rows.text_b[i])
    truth, choices = rows.label[i], rows.choices[i] if rows.choices else None
    if job.kind.words and rows.tokens:
        places = [n for n, (t, s) in enumerate(zip(truth, said, strict=True)) if t != s]
        words = [f"{rows.tokens[i][n]}/" for n in places]
        out |= {"truth": spelled(job, words, [truth[n] for n in places]), "said": spelled(job, words, [said[n] for n in places])}
        return out
    out |= {"truth": named(job, truth, choices), "said": named(job, said, choices)}
    if isinstance(truth, int):
        out["sure"] = round(max(scores), 4)
    return out


def spelled(job: Job, words: Sequence[str], labels: Sequence[int]) -> str:
    return cut(" ".join(word + job.kind.labels[n] for word, n in zip(words, labels, strict=True)))


def named(job: Job, label: Any, choices: Sequence[str] | None) -> str:
    """A label or an answer in words."""
    if isinstance(label, int):
        return cut((job.kind.labels or choices or ())[label])
    if isinstance(label, str):
        return cut(label)
    if job.kind.labels:
        return ", ".join(job.kind.labels[n] for n in label) or "none"
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in label[:3])


def cut(text: str) -> str:
    return text if len(text) <= LENGTH else text[: LENGTH - 1] + "…"
