"""``Library``: experts of one backbone from many runs, banks and PEFT folders: listed, compared, clustered, and routed
without retraining, for rows that come without a task."""

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.func import vmap

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.delta import At, Delta, Params
from anabranch.core.gate import Gate
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.delta.dense import Dense
from anabranch.delta.lora import Lora
from anabranch.engine.backbone import Backbone
from anabranch.engine.experts import (
    EMPTY,
    WHAT,
    Expert,
    Source,
    backbone_for,
    distinct,
    experts_of,
    keys_of,
    label,
    lacking,
    together,
)
from anabranch.engine.features import Features
from anabranch.engine.given import missing, needs, rows_of
from anabranch.engine.model import Model, Served
from anabranch.engine.passes import encode
from anabranch.engine.share import fitting
from anabranch.errors import InputError
from anabranch.settings import card


class Library:
    """Experts of ``sources``: a list, or {label: source}, of runs, bundles, PEFT LoRA folders, models and banks.

    ``backbone``: a name or a :class:`Backbone`; by default that of the first run or model. An expert is named after its
    task, or its source's label; where two would have one name, after both. A run that was fitted with a gate over its tasks'
    own slots gives an expert for each task, whatever that answers from. InputError: no expert in it, or one of another f.
    """

    def __init__(self, sources: Sequence[Source] | Mapping[str, Source], backbone: Backbone | str | None = None) -> None:
        if isinstance(sources, (str, Path, Model, Bank)):
            raise InputError(f"a library is made of a list of sources, got a single one: put it in [ ] ({sources!r:.60})")
        if not isinstance(sources, Iterable):
            raise InputError(f"a library is made of a list of sources, each {WHAT}, got {sources!r:.60}: pass ['runs/a']")
        given = list(sources.values() if isinstance(sources, Mapping) else sources)
        labels = [label(source, i) for i, source in enumerate(given, 1)]
        labelled = list(zip(map(str, sources) if isinstance(sources, Mapping) else labels, given, strict=True))
        self.backbone = backbone_for(given, backbone)
        found = [expert for name, source in labelled for expert in experts_of(name, source, self.backbone)]
        if not found:
            raise InputError(EMPTY + ("; ".join(lacking(*one) for one in labelled) or "no sources"))
        self.experts = distinct(found)

    def __len__(self) -> int:
        return len(self.experts)

    def __iter__(self) -> Iterator[Expert]:
        return iter(self.experts)

    def __repr__(self) -> str:
        more = ", ..." if len(self) > 8 else ""
        return f"Library({self.backbone.id}, {len(self)} experts: {', '.join(self.names[:8])}{more})"

    @property
    def names(self) -> list[str]:
        return [e.name for e in self.experts]

    def describe(self) -> list[dict[str, Any]]:
        """What is known of each expert: source, deltas with settings, sites, numbers, and its tasks with their test scores."""
        facts = ("kind", "metric", "test", "description")
        return [{
            "name": e.name, "source": e.source,
            "delta": [card(bank.delta) for bank, _ in e.parts],
            "sites": sum(len(bank.sites) for bank, _ in e.parts),
            "numbers": sum(bank.tables[t].n for bank, _ in e.parts for t in bank.slot_tables if t != "keys"),
            "tasks": {n: {k: s.record.get(k) for k in facts} for n, s in e.tasks.items()},
        } for e in self.experts]  # fmt: skip

    # ---- compared ------------------------------------------------------------------------------------------------
    def similar(self) -> Tensor:
        """[n, n] in [-1, 1]: cosine between the experts' changes of f's weights, over all sites.

        Of LoRA by its factors, without the matrices; of deltas without a weight form between their own numbers.
        """
        joint = together(self.experts, self.backbone)
        if isinstance(joint.delta, Lora):
            gram = sum((inner(p["a"][1:].float(), p["b"][1:].float()) for p in own_of(joint)), torch.zeros(()))
        else:
            weights = type(joint.delta).weight is not Delta.weight
            flat = (together(self.experts, self.backbone, dense=True) if weights else joint).tables["own"].data[1:].float()
            gram = flat @ flat.mT
        size = gram.diagonal().clamp(min=1e-30).sqrt()
        return (gram / size / size[:, None]).clamp(-1, 1)

    def clusters(self, k: int, seed: int = 0) -> dict[str, list[str]]:
        """Experts in k groups of like changes, {"cluster 1": [name, ...], ...} in the order of their first members.

        Model-based clustering: k-means on the flattened changes at length 1 (Ostapenko et al. 2024, arXiv:2405.11157), here
        in the space that they span. With task names for experts it is what the gate enforced takes as ``domains``, which
        trains one expert a cluster.
        """
        if not isinstance(k, Integral) or not 1 <= k <= len(self):
            raise InputError(
                f"a library of {len(self)} experts has 1 to {len(self)} clusters, got {k!r:.40}: pass a whole number, such as"
                f" clusters({min(2, len(self))})"
            )
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        values, vectors = torch.linalg.eigh(self.similar().double())
        values = torch.where(values > 1e-6 * values.max(), values, 0)
        points = (vectors * values.sqrt()).round(decimals=5)  # inner products are the cosines; equal experts are one point
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer groups where experts are the same
            found = KMeans(k, n_init=10, random_state=seed).fit_predict(points.numpy())
        groups: dict[int, list[str]] = {}
        for name, group in zip(self.names, found.tolist(), strict=True):
            groups.setdefault(group, []).append(name)
        return {f"cluster {i}": members for i, members in enumerate(groups.values(), 1)}

    # ---- routed --------------------------------------------------------------------------------------------------
    def bank(self, gate: Any = "arrow", examples: Mapping[str, Sequence[str]] | None = None) -> Bank:
        """All experts as slots of one bank under a gate that needs no task and no training.

        Experts of one kind and setting stay as they are; LoRAs of several ranks are padded to the widest; other mixtures
        become dense changes of weights. ``examples``: {expert: texts of its task}, for a gate whose keys are statistics of
        inputs (keyed). An expert's key does not depend on the others.
        """
        gate, asked = make("gate", gate), not isinstance(gate, str)
        self._check(gate, asked, examples)
        joint = together(self.experts, self.backbone)
        if "dW" in gate.needs and type(joint.delta) not in (Lora, Dense):
            joint = together(self.experts, self.backbone, dense=True)
        routed, rng = Bank(joint.delta, gate, joint.sites, {}, 0, len(self)), Generator().manual_seed(0)
        slots = []
        for i, expert in enumerate(self.experts, 1):
            slot = joint.take(i)
            seen = self._seen(joint, expert, examples) if gate.needs & {"mean", "cov"} else {}
            for site in joint.sites:
                keys = keys_of(expert, gate, site, slot[site.key], rng, seen.get(site.key))
                slot[site.key] |= {f"key.{n}": t for n, t in keys.items()}
            slots.append(slot)
        gates = routed.gates(rng)
        routed.adopt(slots[0], gates, joint.tables["shared"].get(1))
        routed.add(slots)
        if gates:
            routed.add_gate(gates)
        return fitting(routed)

    def route(self, gate: Any = "arrow", examples: Mapping[str, Sequence[str]] | None = None) -> "Routed":
        """A model that answers through all experts under a gate; arguments as :meth:`bank`."""
        return Routed(self, self.bank(gate, examples))

    def _check(self, gate: Gate, asked: bool, examples: Mapping[str, Sequence[str]] | None) -> None:
        name = card(gate)["method"].partition(".")[2]
        site = self.experts[0].parts[0][0].sites[0]
        if gate.plain or (gate.trained and gate.own(site, len(self), Generator())):
            raise InputError(
                f"gate {name} chooses by a row's task, which rows of a library may lack; use arrow, phatgoose or keyed"
            )
        if asked and gate.top is not None and gate.top > len(self):
            raise InputError(f"gate {name} keeps {gate.top} of a row's experts, the library has {len(self)}: lower top")
        lacking = [n for n in self.names if not (examples or {}).get(n)] if gate.needs & {"mean", "cov"} else []
        if lacking:
            raise InputError(f"gate {name} reads its keys from texts of each task: pass examples={{{lacking[0]!r}: [text, ...]}}")

    def _seen(self, bank: Bank, expert: Expert, examples: Mapping[str, Sequence[str]] | None) -> dict[str, Params]:
        """Mean [d] and E[x x^T] [d, d] of what each site sees of f's own in an expert's texts, over real tokens."""
        adapted, sums = Adapted(self.backbone.f, [bank]), dict[str, list[Tensor]]()
        live = Features(self.backbone, None, 0)
        for batch in batches(live, live.add(self.backbone.tokens(list((examples or {})[expert.name])))):
            for key, at in watched(live, adapted, batch, [Route.to([0] * len(batch))]).items():
                x = (at.x if at.x.is_floating_point() else at.y)[at.mask].float()
                parts = [torch.tensor(float(len(x))), x.sum(0), x.mT @ x]
                sums[key] = [a + b for a, b in zip(sums[key], parts, strict=True)] if key in sums else parts
        return {key: {"mean": total / n, "cov": square / n} for key, (n, total, square) in sums.items()}


class Routed(Model):
    """A library under a gate. ``predict(task, rows)`` answers with that task's head, ``ask(rows)`` without a task."""

    def __init__(self, library: Library, bank: Bank) -> None:
        self.library, self.backbone, self._lock = library, library.backbone, threading.RLock()
        self.banks = [bank.to(self.backbone.dtype)]
        tasks = {n: s for e in library.experts for n, s in e.tasks.items()}
        self.served = {n: Served(n, s.record, 1, s.head, s.post, s.corpus) for n, s in tasks.items()}
        made = {"id": self.backbone.id, "fingerprint": self.backbone.fingerprint}
        self.bundle = {"backbone": made, "tasks": {n: s.record for n, s in tasks.items()}, "made": {"seed": 0}}
        self.tail = max(0, min(s.depth for s in bank.sites))
        self.adapted = Adapted(self.backbone.f, self.banks, self.tail)

    def routes(self, numbers: Sequence[int]) -> list[Route | None]:
        """Every row may take every expert."""
        who = torch.ones(len(numbers), dtype=torch.long) if self.banks[0].tables["gate"].n else None
        return [Route.to(torch.arange(1, 1 + len(self.library)).expand(len(numbers), -1), who=who)]

    def ask(self, rows: Any) -> list[dict[str, Any]]:
        """One answer per row, with a head of the expert that the row is routed to most.

        ``{"expert", "task", "shares": {expert: share}, "prediction", "scores"}``. Only experts with a task whose columns the
        row has can answer; InputError names the row for which there is none. Of an expert's several tasks, the one to whose
        experts the row is routed most together, of equal ones that which reads most of the row's columns, then the first.
        """
        given, experts = read(rows), {e.name: e for e in self.library}
        kinds = {n: (s.kind, s.record["kind"]) for n, s in self.served.items()}
        out: list[dict[str, Any]] = []
        for number, (row, share) in enumerate(zip(given, self.shares(given).tolist(), strict=True), 1):
            shares = dict(zip(experts, share, strict=True))
            able = {n: len(needs(*kind)) for n, kind in kinds.items() if not missing(*kind, row)}
            if not able:
                raise InputError(
                    f"row {number}: no expert's task can do with {', '.join(row) or 'no keys'}; ask predict for a task"
                )
            total = {n: sum(shares[e] for e, expert in experts.items() if n in expert.tasks) for n in able}
            best = max((e for e in experts if total.keys() & experts[e].tasks.keys()), key=lambda e: shares[e])
            task = max((n for n in experts[best].tasks if n in able), key=lambda n: (total[n], able[n]))
            out.append({"expert": best, "task": task, "shares": shares})
        for task in {entry["task"] for entry in out}:
            mine = [i for i, entry in enumerate(out) if entry["task"] == task]
            for i, found in zip(mine, self.predict(task, [given[i] for i in mine]), strict=True):
                out[i] |= found
        return out

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """[n, d]: the texts' vectors through all experts, for a head of one's own or a search."""
        live = Features(self.backbone, None, self.tail)
        units = live.add(self.backbone.tokens(texts))
        z = encode(live, self.adapted, units, [1] * len(units), False, self.routes)
        return torch.cat(z)[:, : self.backbone.d] if z else torch.zeros(0, self.backbone.d)

    @torch.no_grad()
    def shares(self, rows: Sequence[Any]) -> Tensor:
        """[rows, experts]: how much of each expert a row's text takes, meaned over its tokens and the sites."""
        live, bank = Features(self.backbone, None, self.tail), self.banks[0]
        units = live.add(self.backbone.tokens(rows_of(read(rows)).text))
        found: dict[int, Tensor] = {}
        for batch in batches(live, sorted(set(units))):
            seen = watched(live, self.adapted, batch, self.routes(batch))
            whole = torch.stack([shares_at(bank, key, at) for key, at in seen.items()]).mean(0)
            found |= dict(zip(batch, whole, strict=True))
        return torch.stack([found[u] for u in units]) if units else torch.zeros(0, len(bank))


def read(rows: Any) -> list[dict[str, Any]]:
    """Rows of texts or of columns, as columns. InputError where one is neither."""
    if isinstance(rows, (str, Mapping)) or not isinstance(rows, Iterable):
        raise InputError(f"rows is a list of texts or of {{'text': ...}}, got {rows!r:.60}: put a single one in [ ]")
    records = rows.to_dict("records") if type(rows).__name__ == "DataFrame" else rows  # type: ignore[attr-defined]
    given = [{"text": r} if isinstance(r, str) else r for r in records]
    for i, row in enumerate(given, 1):
        if not isinstance(row, Mapping):
            raise InputError(f"row {i}: expected a text or {{'text': ...}}, got {row!r:.60}; put its text in quotes")
        text, tokens = row.get("text") or "", row.get("tokens") or []
        if not isinstance(text, str) or not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
            raise InputError(f"row {i}: text is a string and tokens a list of strings, got {tokens or text!r:.60}")
    return [dict(row) for row in given]


def own_of(bank: Bank) -> list[Params]:
    """The own tensors [slots + 1, ...] of each site."""
    return list(bank.tables["own"].split(bank.tables["own"].data).values())


def inner(a: Tensor, b: Tensor) -> Tensor:
    """[n, n]: sum over the entries of (a_i b_i) * (a_j b_j), of a [n, d_in, r], b [n, r, d_out]."""
    n, _, r = a.shape
    left, right = a.permute(1, 0, 2).flatten(1), b.flatten(0, 1)
    return ((left.mT @ left) * (right @ right.mT)).view(n, r, n, r).sum((1, 3))


def batches(live: Features, units: Sequence[int]) -> Iterator[list[int]]:
    """Units of one length together, at most 64."""
    for length in sorted({live.length(u) for u in units}):
        same = [u for u in units if live.length(u) == length]
        yield from (same[i : i + 64] for i in range(0, len(same), 64))


@torch.no_grad()
def watched(live: Features, adapted: Adapted, units: Sequence[int], routes: Sequence[Route | None]) -> dict[str, At]:
    """What each site sees of the units in one forward pass."""
    adapted.seen = {}
    try:
        live.forward(adapted, units, routes, False)
        return adapted.seen
    finally:
        adapted.seen = None


def shares_at(bank: Bank, key: str, at: At) -> Tensor:
    """[b, k]: the weights of all slots at one site, meaned over real tokens, or over blocks of parameters."""
    gate, on = bank.gate, torch.ones(len(bank), dtype=torch.bool)
    keys = bank.tables["keys"].split(bank.tables["keys"].data[1:]).get(key, {})
    mine = bank.tables["gate"].get(1).get(key, {}) if bank.tables["gate"].n else {}

    def one(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        w = gate.weigh(mine, keys, At(x, y, mask, at.W, at.b, at.module), on).float()
        if w.ndim == 1 or gate.on == "params":
            return w if w.ndim == 1 else w.mean(0)
        return torch.where(mask[:, None], w, 0.0).sum(0) / mask.sum().clamp(min=1)

    found: Tensor = vmap(one)(at.x, at.y, at.mask)
    return found
