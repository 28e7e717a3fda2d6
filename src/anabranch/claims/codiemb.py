"""A LoRA for retrieval (480 questions to paragraphs of XQuAD, cut at 64 tokens) and similarity (640 pairs of sentences) that
train in turn, each with its own loss of CoDiEmb, against one that trains both as one task with one contrastive loss (pairs of
at least 4 of 5 points are positives): nDCG@10 and Spearman's correlation, the latter by a linear head fitted to the features
of either. And the soup of two tasks' own dense deltas weighted by how far each tensor moved, against the uniform soup."""

from dataclasses import replace
from typing import Any

from anabranch.claims._merges import view_of
from anabranch.core.adapt import Adapted
from anabranch.engine import linear
from anabranch.engine.passes import Slot
from anabranch.task.data import Rows, Task

holds = ("codiemb > shared_loss", "soup >= uniform")
NEAR, TOKENS = 4.0, 64


def claim(lab: Any) -> dict[str, dict[str, float]]:
    if lab.data:
        (ask,) = lab.tasks(["xquad_retrieval_en"], rows=480, max_length=TOKENS)
        (alike,) = lab.tasks(["sts_open"], rows=640, max_length=TOKENS)
    else:
        ask, alike = lab.tasks(["find", "same"], rows=256)
    suite = lab.suite([ask, alike, joined(ask, alike)])
    two, one = suite.only(ask.name, alike.name), suite.only("both")
    typed, experts, plain = two.shared("lora", balance="codiemb"), two.own({"dense": {}, "lr": 3e-4}), one.own("lora")
    adapted = Adapted(suite.f, plain.filled(), suite.features.tail)
    out = {"codiemb": {n: measured(suite, n, typed.view(n)) for n in two.jobs},
           "shared_loss": {n: measured(suite, n, Slot(suite.features, adapted, False)) for n in two.jobs}}  # fmt: skip
    for way, method in (("soup", "deviation_soup"), ("uniform", "mean")):
        made = experts.merged(method)
        out[way] = {n: measured(suite, n, view_of(suite, n, made)) for n in two.jobs}
    frozen = {n: linear.frozen(suite.features, job) for n, job in two.jobs.items()}
    return out | {"single": {n: measured(suite, n, experts.view(n)) for n in two.jobs},
                  "probe": {n: measured(suite, n, frozen[n]) for n in two.jobs}}  # fmt: skip


def measured(suite: Any, name: str, view: Any) -> float:
    """A task's test score on these features, with a head fitted to them where its kind has one."""
    return float(suite.score(name, view, linear.probe(suite.jobs[name], suite.features, view)[0]))


def joined(ask: Task, alike: Task) -> Task:
    """Both as one retrieval: the second of two alike texts is the document that the first asks for."""
    corpus = dict(ask.corpus or {})
    numbers = [y for y in alike.train.label if not isinstance(y, list)]

    def near(rows: Rows) -> Rows:
        found = Rows([], None, None, None, [])
        for i, (a, b, y) in enumerate(zip(rows.text, rows.text_b or (), rows.label, strict=True)):
            if y >= [NEAR] if isinstance(y, list) else y == max(numbers):
                corpus[f"near {len(corpus)} {i}"] = b
                found.text.append(a)
                found.label.append([list(corpus)[-1]])
        return found

    def both(split: str) -> Rows:
        asked, other = getattr(ask, split), near(getattr(alike, split))
        return Rows(asked.text + other.text, None, None, None, asked.label + other.label)

    train, valid = both("train"), both("valid")
    return replace(ask, name="both", train=train, valid=valid, corpus=corpus)
