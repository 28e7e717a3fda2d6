"""How much of each slot rows get from a gate: of every task in the report, of one row on the page."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, vmap

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.delta import At
from anabranch.core.route import Route
from anabranch.engine.features import Features
from anabranch.engine.given import rows_of
from anabranch.engine.model import Model, Served

SAMPLE = 64  # texts of a task
Routes = Callable[[Sequence[int]], Any]  # owners -> their route, or one for each bank


@torch.no_grad()
def usage(features: Features, adapted: Adapted, units: Sequence[int], routes: Routes) -> Tensor | None:
    """[k]: mean weight of each of the k slots that the units of one task may take, over units, sites and real tokens; None
    where no gate weighs them. ``routes(owners)``: the same route for every unit."""
    found: list[Tensor] = []
    for length in sorted({features.length(u) for u in units}):
        batch = [u for u in units if features.length(u) == length]
        given = routes([1] * len(batch))
        each = list(given) if isinstance(given, (list, tuple)) else [given] * len(adapted.banks)
        gated = [
            (bank, route) for bank, route in zip(adapted.banks, each, strict=True) if route is not None and not bank.gate.plain
        ]
        if not gated:
            return None
        adapted.seen = {}
        try:
            features.forward(adapted, batch, each, False)
            seen = adapted.seen
        finally:
            adapted.seen = None
        sites = [weights(bank, route, site.key, seen[site.key]) for bank, route in gated for site in bank.sites]
        found.append(torch.stack(sites).mean(0))
    return torch.cat(found).mean(0) if found else None


def weights(bank: Bank, route: Route, key: str, at: At) -> Tensor:
    """[b, k]: what the gate gives each slot at one site, meaned over real tokens, or over blocks of parameters."""
    gate, ids, on = bank.gate, route.ids[0], route.ids[0] > 0
    tables = bank.tables
    keys = tables["keys"].split(tables["keys"].data[ids]).get(key, {}) if tables["keys"].n else {}
    mine = tables["gate"].split(tables["gate"].data[route.who[0]]).get(key, {}) if route.who is not None else {}
    keys, mine = ({n: t.to(at.y.dtype) if t.is_floating_point() else t for n, t in p.items()} for p in (keys, mine))

    def one(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        w = gate.weigh(mine, keys, At(x, y, mask, at.W, at.b, at.module), on).float()
        if w.ndim == 1 or gate.on == "params":
            return w if w.ndim == 1 else w.mean(0 if w.shape[-1] == len(ids) else -1)
        return torch.where(mask[:, None], w, 0.0).sum(0) / mask.sum().clamp(min=1)

    found: Tensor = vmap(one)(at.x, at.y, at.mask)
    return found


def fired(model: Model, served: Served, row: Any) -> list[dict[str, Any]] | None:
    """``[{"slot", "weight"}]`` of a row of a task, the most first; None where no gate weighs its slots."""
    if served.record["rung"] != "shared" or all(bank.gate.plain for bank in model.banks):
        return None
    live = Features(model.backbone, None, model.tail)
    texts = served.kind.units(rows_of([row]))[0]
    units = live.add(model.backbone.tokens(list(texts), served.record.get("max_length")))
    found = usage(live, model.adapted, units, lambda owners: model.routes([served.number] * len(owners)))
    if found is None:
        return None
    names = named(
        len(found), list(model.bundle["made"].get("plan", {}).get("tasks", {})), any(b.gate.library for b in model.banks)
    )
    return sorted(({"slot": n, "weight": w} for n, w in zip(names, found.tolist(), strict=True)), key=lambda f: -f["weight"])


def named(slots: int, tasks: Sequence[str], library: bool) -> list[str]:
    """Slots of a library are called after the tasks that they were trained for."""
    return list(tasks) if library and len(tasks) == slots else [f"slot {i + 1}" for i in range(slots)]
