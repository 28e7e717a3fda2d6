"""Arrow over eight text LoRAs less a general one, against Arrow over the LoRAs as they are, on four held-out tasks whose linear
heads are fitted on the routed features. The general LoRA learns from texts alone, which of 64 frequent words were taken out of
a text of the eight tasks, where the paper has causal language modelling of Wikipedia. A random LoRA of equal length, subtracted
instead, and uniform averaging stand beside it. Last two blocks of MiniLM."""

from dataclasses import replace
from typing import Any

import torch

from anabranch.claims._merges import composed, missing_words, of_bank, refitted, trees
from anabranch.core.names import make

holds = ("residual > raw",)


def claim(lab: Any) -> dict[str, dict[str, float]]:
    tasks = lab.tasks(12)
    library, held = lab.suite(tasks[:-4]).own("lora"), lab.suite(tasks[-4:])
    (general,) = lab.suite([missing_words(lab, "missing words", tasks[:-4], 512)]).own("lora").slots

    def less(slot: dict[str, Any]) -> Any:
        (bank,) = replace(library, slots=[*library.slots, slot]).filled()
        return of_bank(library, make("merge", {"genknowsub": {"general": 1}})(bank, library.suite.f))

    noise = torch.randn(general["0.own"].shape, generator=lab.rng)
    random = {**general, "0.own": noise * general["0.own"].norm() / noise.norm()}
    return {
        "residual": routed(held, less(general), "arrow"),
        "raw": routed(held, library, "arrow"),
        "random": routed(held, less(random), "arrow"),
        "average": refitted(held, {n: composed(held, n, library, "mean", trees(library)) for n in held.jobs}),
        "probe": held.probe(),
    }


def routed(held: Any, library: Any, gate: Any) -> dict[str, float]:
    found = held.over(library, gate, learn=False)
    heads = held.refit(found.view)
    return {n: held.score(n, found.view(n), heads[n]) for n in held.jobs}
