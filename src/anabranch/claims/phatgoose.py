"""Eight LoRAs, each trained alone on its text task, for rows that come without a task: PHATGOOSE routing (a gate vector a slot,
learned alone on the slot's task; top 2, by token and layer) against the uniform average of all and against the one expert
whose task has the mean text vector nearest to the row's. Features are judged by each row's own head, as labels differ between
tasks. Adding an expert is measured by the gates' numbers that change, as a share. Gate vectors learn for some 90 steps (the
paper: 100); changes sit at the queries and values of the last two blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

holds = ("phatgoose > uniform", "phatgoose > retrieval", "moved <= 0")


def claim(lab: Any) -> dict[str, dict[str, float]]:
    suite = lab.suite(8)
    library = suite.own("lora")
    routed = suite.over(library, "phatgoose", learn=False)
    return {
        "phatgoose": routed.scores(),
        "uniform": suite.over(library, "fixed", learn=False).scores(),
        "retrieval": retrieval(suite, library),
        "own": library.scores(),
        "probe": suite.probe(),
        "moved": {"gates": moved(routed)},
    }


@dataclass
class Nearest:
    """Features of each unit through the slot whose key is nearest to f's own vector of it."""

    vectors: Tensor
    keys: Tensor
    views: Sequence[Any]

    def __call__(self, units: Sequence[int]) -> Tensor:
        chosen = (normalize(self.vectors[list(units)].float(), dim=-1) @ self.keys.mT).argmax(-1)
        rows: list[Tensor] = [torch.empty(0)] * len(units)
        for k, view in enumerate(self.views):
            mine = (chosen == k).nonzero().flatten().tolist()
            found = view([units[i] for i in mine]) if mine else []
            for i, row in zip(mine, found, strict=True):
                rows[i] = row
        return torch.stack(rows)


def retrieval(suite: Any, library: Any) -> dict[str, float]:
    vectors, banks = suite.features.vectors, library.filled()
    texts = [[u for row in job.parts["train"].units for u in row] for job in suite.jobs.values()]
    keys = torch.stack([normalize(vectors[units].float(), dim=-1).mean(0) for units in texts])
    view = Nearest(vectors, normalize(keys, dim=-1), [library.view(name, banks) for name in suite.jobs])
    return {name: suite.score(name, view, library.heads[name]) for name in suite.jobs}


def moved(routed: Any) -> float:
    """The share of the other gates' numbers that are not bit for bit the same once the last expert has joined."""
    (bank,) = routed.filled()
    last = bank.take(len(bank))
    bank.remove([len(bank)])
    before = bank.tables["keys"].data.clone()
    bank.add([last])
    return float((bank.tables["keys"].data[:-1] != before).float().mean())
