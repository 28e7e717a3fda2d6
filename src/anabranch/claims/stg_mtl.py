"""Twenty binary text tasks of 96 rows from three families that nobody names (is it this kind of question, is it this domain of
requests, is it positive): one LoRA for each group that STG-MTL finds in the tasks' data maps, against groups of the same sizes
drawn at random. One LoRA for all and one for each task stand beside it."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from anabranch.engine.passes import seeded
from anabranch.task.data import Rows, Task

holds = ("stg > random_groups",)
ROWS, TEST, CLUSTERS = 96, 100, 3
MANY = {"trec6": 6, "clinc150_domain": 7}  # tasks of several classes, and how many of these become a task
SIGNED = ("sst2", "cr", "uci_sentiment_yelp", "uci_sentiment_imdb", "uci_sentiment_amazon", "senti4sd", "tweet_emotion")
GOOD, BAD = re.compile("positive|joy|optimism"), re.compile("negative|anger|sadness")
OWN = {"library": 6, "area": 6, "sections": 0}  # of the docstring suite


def claim(lab: Any) -> dict[str, dict[str, float]]:
    tasks = families(lab)
    suite, joint = lab.suite(tasks), [task.name for task in tasks]
    stg = suite.shared("lora", balance={"stg_mtl": {"clusters": CLUSTERS}})
    sizes = sorted(Counter(tuple(slots) for slots in stg.takes.values()).values())
    order = torch.randperm(len(joint), generator=seeded(lab.seed, "groups")).tolist()
    random: dict[str, float] = {}
    for size in sizes:
        group, order = order[:size], order[size:]
        random |= suite.only(*(joint[i] for i in group)).shared("lora").scores()
    return {"stg": stg.scores(), "random_groups": random, "all_together": suite.shared("lora").scores(),
            "single": suite.own("lora").scores(), "probe": suite.probe(),
            "groups": {f"group {i + 1}": float(size) for i, size in enumerate(sizes)}}  # fmt: skip


def families(lab: Any) -> list[Task]:
    out = []
    for name, most in (MANY if lab.data else OWN).items():
        for task in lab.tasks([name], rows=2000, test=1000) if most else ():
            common = [y for y, _ in Counter(task.train.label).most_common(most)]
            out += [binary(lab, task, f"{name}: {task.labels[y]}", {y}, set(range(len(task.labels))) - {y}) for y in common]
    for task in lab.tasks(SIGNED, rows=2000, test=1000) if lab.data else ():
        good, bad = ({y for y, label in enumerate(task.labels) if word.search(label.lower())} for word in (GOOD, BAD))
        out.append(binary(lab, task, f"{task.name}: positive", good, bad))
    return out


def binary(lab: Any, task: Task, name: str, yes: set[int], no: set[int]) -> Task:
    """Whether a text's class is in ``yes``, with as many rows of ``no``."""

    def part(rows: Rows, most: int, seed: int) -> Rows:
        order = torch.randperm(len(rows), generator=seeded(seed, name)).tolist()
        half = [[i for i in order if rows.label[i] in side][: most // 2] for side in (yes, no)]
        cut = min(map(len, half))
        ids = [i for pair in zip(*(side[:cut] for side in half), strict=True) for i in pair]
        found = rows.take(ids)
        return replace(found, label=[int(y in yes) for y in found.label])

    return replace(task, name=name, labels=["no", "yes"], metric="accuracy", train=part(task.train, ROWS, lab.seed),
                   valid=part(task.valid, 20, lab.seed), test=part(task.test, TEST, 0))  # fmt: skip
