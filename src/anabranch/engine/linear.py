"""The probe stage: a linear head per task on frozen features; and how outputs become answers and scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.route import Route
from anabranch.engine.features import Features
from anabranch.engine.job import Head, Job, Part, apply, fresh, joined, leaves_of
from anabranch.task.kind import Kind
from anabranch.task.kind._base import Post
from anabranch.task.metrics import score


class View(Protocol):
    """How a task sees its units under one slot: as features, [units, d] or of their words [words, d], or as what f says."""

    def __call__(self, units: Sequence[int]) -> Tensor: ...

    def speak(self, units: Sequence[int]) -> list[str]: ...


Index = tuple[list[str], Tensor]  # ids of documents, and their unit vectors [documents, d]
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # inverse strength C, as in scikit-learn


@dataclass(frozen=True)
class Frozen:
    """f's own features, as the features stage kept them."""

    features: Features
    words: bool

    def __call__(self, units: Sequence[int]) -> Tensor:
        if self.words:
            return torch.cat([self.features.words[u].float() for u in units])
        return self.features.vectors[list(units)]

    def speak(self, units: Sequence[int]) -> list[str]:
        return speak(self.features, Adapted(self.features.backbone.f, []), units, None)


def frozen(features: Features, job: Job) -> View:
    return Frozen(features, job.kind.words)


@torch.no_grad()
def speak(features: Features, adapted: Adapted, units: Sequence[int], route: Any, most: int = 32) -> list[str]:
    """What f goes on to say after each unit's text, greedily, at most ``most`` tokens; rows of equal length together.

    ``route``: that of one row, for all of them; or a list of these, one of each bank.
    """
    out, b = [""] * len(units), features.backbone
    whole = Adapted(b.f, adapted.banks)  # what is said next has no features yet, so f runs from its first block
    whole.sources = adapted.sources
    fronts = [features.tokens[u].ids[: features.tokens[u].starts[0]] for u in units]
    for length in sorted({len(front) for front in fronts}):
        rows = [i for i, front in enumerate(fronts) if len(front) == length]
        ids = torch.tensor([fronts[i] for i in rows])
        each = route if isinstance(route, list) else [route] * len(whole.banks)
        whole.routes = [None if one is None else repeated(one, len(rows)) for one in each]
        found = whole.f.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=b.pad,
                                   max_new_tokens=min(most, b.longest - length))  # type: ignore[operator] # fmt: skip
        for i, row in zip(rows, b.tokenizer.batch_decode(found[:, length:], skip_special_tokens=True), strict=True):
            out[i] = row.strip()
    return out


def repeated(route: Route, rows: int) -> Route:
    """The route of one row, for ``rows`` rows."""
    w, who = (None if t is None else t[:1].expand(rows, *t.shape[1:]) for t in (route.w, route.who))
    return Route.to(route.ids[:1].expand(rows, -1), w, who)


def inputs(job: Job, rows: Sequence[Sequence[int]], view: View, counts: Sequence[int], d: int) -> Tensor:
    return joined(job.kind, view([u for row in rows for u in row]), counts, d)


def solve(kind: Kind, x: Tensor, y: Any, counts: Sequence[int], c: float, start: Head, around: Tensor | float = 0.0) -> Head:
    """Minimises ``mean loss + ||W - around||^2 / (2 c n)`` by L-BFGS from ``start``; the bias is free."""
    head, n = leaves_of(start), len(counts)
    optimiser = torch.optim.LBFGS([head["W"], head["b"]], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = kind.loss(apply(head, x), y, counts).mean() + (head["W"] - around).square().sum() / (2 * c * n)
        loss.backward()
        return loss

    optimiser.step(closure)
    return {name: t.detach() for name, t in head.items()}


def probe(job: Job, features: Features, view: View | None = None) -> tuple[Head, dict[str, Any]]:
    """The head with the least validation loss, rounded as it is stored, and how it came about.

    Candidates: the features of f's end, or for kinds that may also those of its middle (which hold more of words and of
    syntax), each along a path of ever weaker penalties. ``view``: of other features than f's own.
    """
    kind, view, d = job.kind, view or frozen(features, job), features.backbone.d
    outputs = kind.width(d)[0]
    if not outputs:
        return {}, {}
    train, valid = job.parts["train"], job.parts["valid"]
    counts, held = job.counts(features, train.units), job.counts(features, valid.units)
    x, z = inputs(job, train.units, view, counts, d), inputs(job, valid.units, view, held, d) if len(valid) else None
    best: Head = {}
    least, chosen = float("inf"), dict[str, Any]()
    for size in sorted({kind.width(d)[1], x.shape[1]}):
        head, before = fresh(outputs, x[:, :size], d), float("inf")
        for c in PENALTIES:
            head = rounded(solve(kind, x, train.y, counts, c, head))
            loss = 0.0 if z is None else float(kind.loss(apply(head, z), valid.y, held).mean())
            if loss < least:
                best, least, chosen = head, loss, {"strength": c, "inputs": size}
            if loss >= before:
                break
            before = loss
    return best, chosen


def again(job: Job, features: Features, how: dict[str, Any]) -> Head:
    """The head of :func:`probe` on training and validation rows together, in the way that was chosen without the latter."""
    part, d = whole(job), features.backbone.d
    counts = job.counts(features, part.units)
    x = inputs(job, part.units, frozen(features, job), counts, d)[:, : how["inputs"]]
    head = fresh(job.kind.width(d)[0], x, d)
    for c in PENALTIES[: PENALTIES.index(how["strength"]) + 1]:
        head = rounded(solve(job.kind, x, part.y, counts, c, head))
    return head


def whole(job: Job) -> Part:
    """A job's training and validation rows."""
    a, b = job.parts["train"], job.parts["valid"]
    both = torch.stack([*a.y, *b.y]) if isinstance(a.y, Tensor) else [*a.y, *b.y]
    return Part(a.units + b.units, both, a.labels + b.labels)


def rounded(head: Head) -> Head:
    """As a bundle stores it: bf16."""
    return {n: t.bfloat16().float() for n, t in head.items()}


@torch.no_grad()
def outputs(job: Job, part: Part, features: Features, view: View, head: Head) -> tuple[Tensor, list[int]]:
    counts = job.counts(features, part.units)
    return apply(head, inputs(job, part.units, view, counts, features.backbone.d)), counts


@torch.no_grad()
def settle(job: Job, features: Features, view: View, head: Head) -> Post:
    valid = job.parts["valid"]
    if not head or not len(valid):
        return {}
    out, counts = outputs(job, valid, features, view, head)
    return job.kind.settle(out, valid.y, counts, job.metric)


@torch.no_grad()
def answers(
    job: Job, part: Part, features: Features, view: View, head: Head, post: Post, index: Index | None = None
) -> tuple[list[Any], list[Any]]:
    """Predictions in the label encoding, and their scores, of all rows of a part; queries from ``index``, if given."""
    if not len(part):
        return [], []
    if job.kind.speaks:
        said = view.speak([row[0] for row in part.units])
        return said, said
    if job.documents:
        ids, documents = index or index_of(job, list(job.documents), features, view)
        queries = torch.nn.functional.normalize(view([row[0] for row in part.units])[:, : features.backbone.d], dim=-1)
        return ranked(queries, documents, ids)
    out, counts = outputs(job, part, features, view, head)
    pred, scores = job.kind.answer(out, counts, post)
    return padded(job, part, pred), scores


def padded(job: Job, part: Part, pred: list[Any]) -> list[Any]:
    """Answers with the commonest label at words behind the longest length that f reads."""
    if not job.kind.words:
        return pred
    common = int(job.kind.constant(job.parts["train"].y).argmax())
    return [p + [common] * (len(t) - len(p)) for p, t in zip(pred, part.labels, strict=True)]


@torch.no_grad()
def index_of(job: Job, ids: list[str], features: Features, view: View) -> Index:
    """Documents of a job's corpus as unit vectors."""
    z = view([job.documents[i] for i in ids])[:, : features.backbone.d]
    return ids, torch.nn.functional.normalize(z, dim=-1)


def near(job: Job, part: Part, others: int = 500) -> list[str]:
    """The documents that belong to a part's queries, and the first ``others`` of the rest: enough to see progress by."""
    mine = {i for label in part.labels for i in label}
    rest = [i for i in job.documents if i not in mine]
    return [i for i in job.documents if i in mine] + rest[:others]


def ranked(queries: Tensor, index: Tensor, ids: Sequence[str], most: int = 100) -> tuple[list[list[str]], list[list[float]]]:
    best = (queries @ index.mT).topk(min(most, len(ids)))
    return [[ids[i] for i in row] for row in best.indices.tolist()], best.values.tolist()


def measure(job: Job, part: Part, found: tuple[list[Any], list[Any]]) -> float | None:
    """The main metric of answers; None for an empty part."""
    if not len(part):
        return None
    return score(job.metric, part.labels, found[0], found[1] if job.kind.labels and not job.kind.words else None, job.kind.labels)


def majority(job: Job, part: Part) -> float | None:
    """The score of the best constant answer."""
    if not len(part) or job.documents or not job.kind.width(1)[0]:
        return 0.0 if len(part) else None
    best = job.kind.constant(job.parts["train"].y)
    counts = [len(y) for y in part.labels] if job.kind.words else [len(u) for u in part.units]
    rows = sum(counts) if job.kind.words else sum(n - 1 for n in counts) if job.task.kind == "choice" else len(part)
    return measure(job, part, job.kind.answer(best.expand(rows, -1), counts, {}))
