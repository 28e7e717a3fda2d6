"""DC-Merge with averaged singular values against TIES, task arithmetic and itself without smoothing, over eight text LoRAs of
rank 8; each at its scale that is best on validation rows. Numbers are shares of each task's own score, and cosines between the
merged delta and a task's singular directions, all weighed alike (U V^T), meaned over sites. Last two blocks of MiniLM. Heads
are the labels' names, frozen."""

from typing import Any

import torch

from anabranch.claims._merges import best, kept, scaled
from anabranch.core.bank import Tree
from anabranch.engine.merging import dense

holds = (
    "dc > ties",
    "dc > task_arithmetic",
    "dc_cosine > ties_cosine",
    "dc_cosine > task_arithmetic_cosine",
    "unsmoothed < dc",
    "unsmoothed_cosine < dc_cosine",
)
RANK = 8
WAYS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "dc": ({"dc": {"rank": RANK, "density": 0.01}}, (0.3, 0.6, 1.0, 1.5, 2.5)),
    "unsmoothed": ({"dc": {"rank": RANK, "density": 0.01, "smooth": "none"}}, (0.3, 0.6, 1.0, 1.5, 2.5)),
    "ties": ("ties", (0.3, 0.6, 1.0, 1.5, 2.5)),
    "task_arithmetic": ("task_arithmetic", (0.1, 0.2, 0.3, 0.5, 0.7)),
}


def claim(lab: Any) -> dict[str, dict[str, float]]:
    experts = lab.experts(8, {"lora": {"rank": RANK}})
    single, out = experts.scores(), dict[str, dict[str, float]]()
    for way, (method, scales) in WAYS.items():
        made = best(experts, scaled(experts, method, scales))
        out[way] = kept(experts.under(made), single)
        out[f"{way}_cosine"] = cosines(experts, dense(experts.suite.f, made.bank, 1))
    return out | {"single": single}


def cosines(experts: Any, merged: Tree) -> dict[str, float]:
    """<D, U V^T> / (|D| sqrt(rank)) of each task, mean over sites."""
    (bank,), out = experts.filled(), {}
    for j, name in enumerate(experts.suite.jobs, 1):
        found = []
        for key, p in bank.take(j).items():
            (q, left), (o, right) = torch.linalg.qr(p["a"]), torch.linalg.qr(p["b"].mT)  # dW = (q left right^T o^T)^T
            u, _, vh = torch.linalg.svd(left @ right.mT)
            D = merged[key]["W"]
            found.append((D * (o @ vh.mT @ (q @ u).mT)).sum() / (D.norm() * RANK**0.5).clamp(min=1e-12))
        out[name] = float(torch.stack(found).mean())
    return out
