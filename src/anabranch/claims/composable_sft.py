"""Sparse fine-tuning composed over a shift of domain: a sentiment vector tuned on sst2 (film reviews) alone plus a vector tuned
on texts alone of restaurant, film or phone reviews, scored there under sst2's head; 2 % of the numbers each. From texts it is
learned which of 64 frequent words were taken out, where the paper has masked language modelling. Against the task vector alone,
random places, and dense vectors, whose change by the sum is compared with that of sparse ones. Last two blocks of MiniLM."""

from typing import Any

import torch

from anabranch.claims._merges import missing_words, trees
from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.engine.cache import checksum
from anabranch.engine.lab import EPOCHS
from anabranch.engine.passes import Slot
from anabranch.merge.composable_sft import chosen, moved, tickets

holds = ("composed > task_alone", "composed_change > dense_change", "composed > random")
SOURCE, SHIFTED, DENSITY = "sst2", ("uci_sentiment_yelp", "uci_sentiment_imdb", "uci_sentiment_amazon"), 0.02


def claim(lab: Any) -> dict[str, dict[str, float]]:
    (source,), shifted = lab.tasks([SOURCE]), lab.tasks(SHIFTED)
    texts = [missing_words(lab, f"words of {task.name}", [task], len(task.train)) for task in shifted]
    whole = lab.suite([source, *texts, *shifted])
    suite = whole.only(source.name, *(t.name for t in texts))
    full = suite.own("dense")
    found = {"dense": (full.filled()[0], full.heads[SOURCE]), "sparse": tuned(suite, trees(full))}
    random = suite.own({"sparse": {"density": DENSITY}})
    found["random"] = random.filled()[0], random.heads[SOURCE]

    def scores(kind: str, text: bool) -> dict[str, float]:
        bank, head = found[kind]
        adapted, out = Adapted(whole.f, [bank], whole.features.tail), {}
        for j, name in enumerate(SHIFTED, 2):
            ids = torch.tensor([1, j] if text else [1])
            view = Slot(whole.features, adapted, False, lambda rows, ids=ids: Route.to(ids.expand(len(rows), -1)))  # type: ignore[misc]
            out[name] = whole.score(name, view, head)
        return out

    ways = {"composed": scores("sparse", True), "task_alone": scores("sparse", False), "dense_sum": scores("dense", True),
            "dense_alone": scores("dense", False), "random": scores("random", True)}  # fmt: skip
    return ways | {
        "composed_change": {n: ways["composed"][n] - ways["task_alone"][n] for n in SHIFTED},
        "dense_change": {n: ways["dense_sum"][n] - ways["dense_alone"][n] for n in SHIFTED},
    }


def tuned(suite: Any, full: list[Any]) -> tuple[Bank, Any]:
    """Slots tuned at the places that full tuning moved most, from f anew; and the head of the first."""
    zero = [{s: {n: torch.zeros_like(t) for n, t in p.items()} for s, p in tree.items()} for tree in full]
    on = [chosen(moved(tree, start), {}, DENSITY) for tree, start in zip(full, zero, strict=True)]
    slots, delta = tickets(on, zero), make("delta", {"sparse": {"density": DENSITY}})
    bank = Bank(delta, make("gate", "by_task"), suite.sites(delta.at))
    bank.adopt(slots[0], {}, {"": {}})
    begin = {n: {f"0.{t}": row for t, row in bank.flat(slot).items()} for n, slot in zip(suite.jobs, slots, strict=True)}
    trainer = suite.trainer([bank], [delta.lr], begin=begin)
    todo = [(job, suite.heads[n], EPOCHS, suite.key([bank], [delta.lr], n, EPOCHS, "tickets", checksum(begin[n])))
            for n, job in suite.jobs.items()]  # fmt: skip
    done = {m.job.name: m for m in trainer.run(todo)}
    bank.add([bank.tree({t: done[n].best[f"0.{t}"] for t in bank.slot_tables}) for n in suite.jobs])
    return bank, done[SOURCE].head_of(done[SOURCE].best)
