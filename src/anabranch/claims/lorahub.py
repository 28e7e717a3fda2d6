"""LoraHub (40 evaluations) over stored text LoRAs of rank 8 for a held-out task from 16 examples in all, against their uniform
average, f itself, and a new LoRA of rank 8 on the same examples: test scores and their spread over three draws of examples.
15 stored LoRAs (the paper has 20 of 200), five held-out tasks, mostly of sentiment; no way has a head for an unseen task, so each
fits a linear one to the examples. Last two blocks of MiniLM."""

import statistics
from typing import Any

from anabranch.claims._merges import composed, refitted, shots, trees

holds = ("lorahub > average", "lorahub > zero_shot", "lorahub_spread < lora_spread")
HELD = ("senti4sd", "uci_sentiment_yelp", "uci_sentiment_imdb", "uci_sentiment_amazon", "indonlu_smsa")
EXAMPLES, DRAWS, TEST = 16, 3, 200


def claim(lab: Any) -> dict[str, dict[str, float]]:
    tasks = lab.tasks(20)
    held = [t for t in tasks if t.name in HELD] or [t for t in tasks if t.kind == "classify"][-2:]
    library = lab.suite([t for t in tasks if t not in held]).own("lora")
    few = [
        shots(lab, t, EXAMPLES // len(t.labels), draw)
        for t in lab.tasks([t.name for t in held], test=TEST)
        for draw in range(DRAWS)
    ]
    unseen, vectors = lab.suite(few), trees(library)

    def way(method: Any) -> dict[str, float]:
        return refitted(unseen, {n: composed(unseen, n, library, method, vectors) for n in unseen.jobs})

    found = {"lorahub": way("lorahub"), "average": way("mean"), "zero_shot": unseen.probe(),
             "lora": unseen.own("lora", epochs=15).scores()}  # fmt: skip
    return found | {f"{n}_spread": spread(found[n]) for n in ("lorahub", "lora")}


def spread(scores: dict[str, float]) -> dict[str, float]:
    """The standard deviation over draws of each task."""
    names = {n.partition("~")[0] for n in scores}
    return {name: statistics.stdev([v for n, v in scores.items() if n.partition("~")[0] == name]) for name in sorted(names)}
