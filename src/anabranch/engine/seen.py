"""What a delta or gate may ask about f: statistics of a task's inputs at a site, f's weight there, the size of its heads."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.delta import Params
from anabranch.core.names import make
from anabranch.core.site import width
from anabranch.delta.lofit import Lofit
from anabranch.engine.features import Features
from anabranch.engine.job import Job
from anabranch.errors import InputError, nearest
from anabranch.settings import card

SAMPLE = 256  # texts of a task from which its statistics are taken


def delta_for(f: nn.Module, spec: Any) -> Any:
    """The delta of a plan's entry; heads are as wide as those of f. InputError where the entry says another width."""
    delta = make("delta", spec)
    config = getattr(f, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(delta, Lofit) or not heads:
        return delta
    size = getattr(config, "head_dim", None) or width(f) // heads
    told = "width" in (next(iter(spec.values())) or {}) if isinstance(spec, Mapping) else delta is spec
    if told and delta.width != size:
        wrong = f"lofit: width is that of a head, {size} in {type(f).__name__} of {heads} heads, got {delta.width}"
        raise InputError(f"{wrong}; leave it out or use width: {size}")
    return replace(delta, width=size)


def named(delta: Any, tasks: Iterable[str]) -> str | None:
    """The task whose texts a delta's statistics are of, by its setting ``of``; InputError where it is not among ``tasks``."""
    of: str | None = vars(delta).get("of")
    if of is not None and of not in tasks:
        name = card(delta)["method"].partition(".")[2]
        raise InputError(f"{name}: of is the name of a task of the same fit, got {of!r}{nearest(of, tasks)}")
    return of


@torch.no_grad()
def seen(features: Features, bank: Bank, job: Job, needs: frozenset[str] = frozenset()) -> dict[str, Params] | None:
    """Site key -> those of mean [d_in], cov [d_in, d_in] = E[x x^T] over real tokens, W [d_out, d_in] that are needed; fp32.

    Of the job's training texts, or of those of the task that the delta's setting ``of`` names.
    """
    needs = needs or bank.delta.needs | bank.gate.needs
    if not needs:
        return None
    sums: dict[str, list[Tensor]] = {s.key: [] for s in bank.sites}
    if needs & {"mean", "cov"}:
        other = named(bank.delta, features.texts)
        rows = job.parts["train"].units if other is None else features.texts[other]
        _collect(features, bank, sorted({u for row in rows[:SAMPLE] for u in row})[:SAMPLE], sums)
    out: dict[str, Params] = {}
    for site in bank.sites:
        W = site.weight(features.backbone.f)[0]
        found = {"W": W.detach().float()} if "W" in needs and W is not None else {}
        if sums[site.key]:
            count, total, square = sums[site.key]
            found |= {"mean": total / count, "cov": square / count}
        out[site.key] = {n: t for n, t in found.items() if n in needs}
    return out


def _collect(features: Features, bank: Bank, units: list[int], sums: dict[str, list[Tensor]]) -> None:
    """Adds count, sum and second moments of each site's inputs over the real tokens of units."""
    adapted, mask = Adapted(features.backbone.f, [], features.tail), [torch.zeros(0)]

    def hook(key: str) -> Any:
        def read(_: Any, args: tuple[Any, ...], out: Any) -> None:
            x = args[0] if args and args[0].is_floating_point() else out
            x = x[mask[0].bool()].float()
            parts = [torch.tensor(float(len(x))), x.sum(0), x.mT @ x]
            sums[key] = [a + b for a, b in zip(sums[key] or parts, parts if sums[key] else [0, 0, 0], strict=True)]

        return read

    handles = [adapted.f.get_submodule(s.read or s.name).register_forward_hook(hook(s.key)) for s in bank.sites]
    try:
        for length in sorted({features.length(u) for u in units}):
            batch = [u for u in units if features.length(u) == length]
            entry, hidden = features.entry(batch)
            mask[0] = entry["attention_mask"]
            adapted(entry, None, hidden)
    finally:
        for handle in handles:
            handle.remove()
