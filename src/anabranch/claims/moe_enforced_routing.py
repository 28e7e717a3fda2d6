"""Pairs of four text domains (medical questions, encyclopaedia, bank and assistant requests of one intent), retrieval: an expert
a domain, a copy of the feed-forward layers of the last two blocks chosen by the domain's label, against a model a domain and
one model for all, in which all linear layers of the last two blocks learn. One expert layer is the last block's. Untuned is the
frozen encoder; what is outside the experts stays as it is. The metric is nDCG at 10 among the documents of a task's own rows;
some 300 pairs a domain."""

from typing import Any

from anabranch.claims._pairs import examples, needed

holds = ("enforced >= separate - 0.01", "enforced > shared", "one_layer > half")
GIVEN, MADE = ["medquad_retrieval", "xquad_retrieval_en"], ["banking77", "clinc150_intent"]  # the latter from their classes


def claim(lab: Any) -> dict[str, dict[str, float]]:
    given, made = lab.tasks(GIVEN, rows=320), lab.tasks(MADE, rows=480)
    suite = lab.suite([needed(task) for task in given] + [examples(task) for task in made])
    enforced, untuned = suite.own({"dense": {}, "at": ["mlp.in", "mlp.out"]}).scores(), suite.probe()
    return {
        "enforced": enforced,
        "separate": suite.own("dense").scores(),
        "shared": suite.shared("dense").scores(),
        "one_layer": suite.own({"dense": {}, "at": ["mlp.in[-1:]", "mlp.out[-1:]"]}).scores(),
        "half": {n: (untuned[n] + enforced[n]) / 2 for n in enforced},
        "untuned": untuned,
    }
