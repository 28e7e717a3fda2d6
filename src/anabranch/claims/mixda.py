"""Three domain corpora without labels (bank requests, films, talk of developers), each the source of one change beside the
feed-forward layers of the last two blocks, and six tasks of 256 rows, three of these domains and three of none. A task's gate
over the frozen domain changes with a task adapter, against the task adapter alone, on the tasks in a domain and on the others;
and against the uniform average of the domain changes with a task adapter. The domain changes are linear, of rank 16, and learn
which two halves of a text belong together, as the encoder has no masked-word head; the paper's loss that keeps a layer's
output on other text is left out."""

from typing import Any

import torch

from anabranch.claims._pairs import halves
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.engine.cache import digest
from anabranch.engine.lab import EPOCHS, replace_gate
from anabranch.engine.share import over

holds = ("gate_in > task_in", "gate_general >= task_general", "gate > uniform")
CORPORA = ["banking77", "sst2", "senti4sd"]
INSIDE, GENERAL = ["banking77", "uci_sentiment_imdb", "senti4sd"], ["trec6", "clinc150_domain", "tweet_emotion"]
BESIDE = {"lora": {"rank": 16, "alpha": 16.0}, "at": "mlp.in->mlp.out"}


def claim(lab: Any) -> dict[str, dict[str, float]]:
    library = lab.suite([halves(task) for task in lab.tasks(CORPORA)]).own(BESIDE)
    suite = lab.suite(lab.tasks(INSIDE + GENERAL, rows=256))
    found = {"gate": beside(suite, library, "mixda"), "task": suite.own("adapter").scores()}
    parts = {f"{way}_{part}": {n: scores[n] for n in names if n in scores}
             for way, scores in found.items() for part, names in (("in", INSIDE), ("general", GENERAL))}  # fmt: skip
    return found | parts | {"uniform": beside(suite, library, "fixed"), "probe": suite.probe()}


def beside(suite: Any, library: Any, gate: Any) -> dict[str, float]:
    """Each task trains an adapter of its own, and its gate if that learns, beside the library's slots."""
    k, gate = len(library.slots), make("gate", gate)
    (own,), rates = suite.banks("adapter")
    banks = [replace_gate(library.banks[0], gate, k), own]
    stack = {n: torch.stack([slot[n] for slot in library.slots]) for n in library.slots[0]}
    both = over(k)
    trainer = suite.trainer(banks, [*library.rates, *rates], library=stack, routes=lambda o: [both(o), Route.to(list(o))])
    whole = digest(*(digest(t.tolist()) for t in stack.values()))
    todo = [
        (job, suite.heads[n], EPOCHS, suite.key(banks, trainer.rates, n, EPOCHS, "beside", whole))
        for n, job in suite.jobs.items()
    ]
    out = {}
    for learner in trainer.run(todo):
        learner.theta = dict(learner.best)
        out[learner.job.name] = suite.score(learner.job.name, trainer.view(learner), learner.head)
    return {n: out[n] for n in suite.jobs}
