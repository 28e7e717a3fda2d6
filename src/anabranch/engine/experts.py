"""The experts of a library: where they come from, and many of them as slots of one bank."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Generator

from anabranch.core.bank import Bank
from anabranch.core.delta import Delta, Params, Tree
from anabranch.core.fold import Change, changes
from anabranch.core.gate import Gate
from anabranch.core.site import Site
from anabranch.delta.dense import Dense
from anabranch.delta.lora import Lora
from anabranch.engine.backbone import Backbone, backbone_of
from anabranch.engine.exchange import CONFIG, from_peft, names_of
from anabranch.engine.model import Model, Served
from anabranch.engine.store import open_bundle, readable, same_backbone
from anabranch.errors import InputError
from anabranch.gate.by_task import ByTask
from anabranch.gate.fixed import Fixed
from anabranch.settings import card

Source = Path | str | Model | Bank
EMPTY = "an empty library: it needs at least one run, bundle, PEFT folder or bank with a delta, got "
WHAT = "a run, a bundle or a PEFT folder, or a loaded model or bank"


@dataclass(frozen=True)
class Expert:
    """One trained change of f: its slot in each bank of its source, and the tasks that it was trained for and that have a head.

    These are the tasks that answer through it, one or several; of a PEFT folder or a bank nobody knows any.
    """

    name: str
    source: str
    parts: tuple[tuple[Bank, int], ...]
    tasks: Mapping[str, Served] = field(default_factory=dict)

    @property
    def alone(self) -> tuple[Bank, int] | None:
        """Its only part, or None."""
        return self.parts[0] if len(self.parts) == 1 else None


def label(source: Source, number: int) -> str:
    """InputError for what is no source."""
    if not isinstance(source, (str, Path, Model, Bank)):
        raise InputError(f"source {number} of a library: expected {WHAT}, got {source!r:.60}; pass its folder, as in ['runs/a']")
    path = source.folder if isinstance(source, Model) else source
    if isinstance(path, Bank):
        return f"bank {number}"
    path = Path(path)
    return path.parent.name if path.name == "bundle" else path.name


def backbone_for(sources: Sequence[Source], backbone: Backbone | str | None) -> Backbone:
    if isinstance(backbone, Backbone):
        return backbone
    if isinstance(backbone, str):
        return backbone_of(backbone, "float32")
    for source in sources:
        if isinstance(source, Model):
            return source.backbone
        if isinstance(source, (str, Path)) and not (Path(source) / CONFIG).is_file():
            bundle = open_bundle(Path(source))[1]
            return backbone_of(bundle["backbone"]["id"], bundle["dtype"])
    if not sources:
        raise InputError(f"{EMPTY}no sources")
    raise InputError("banks and PEFT folders do not name their backbone: pass backbone='minilm', a folder, or a Backbone")


def experts_of(name: str, source: Source, backbone: Backbone) -> list[Expert]:
    """Those of a source; none where its tasks answer from f alone (:func:`lacking` says it in words)."""
    if isinstance(source, (str, Path)) and (Path(source) / CONFIG).is_file():
        source = from_peft(backbone.f, source, names_of(backbone))
    if isinstance(source, Bank):
        fits(name, source, backbone)
        many = len(source) > 1
        return [Expert(f"{name}/{i}" if many else name, name, ((source, i),)) for i in range(1, len(source) + 1)]
    if not isinstance(source, Model):
        folder, bundle = open_bundle(Path(source))
        same_backbone(backbone, bundle, folder)
        with readable(folder):
            source = Model(folder, bundle, backbone)
    same_backbone(backbone, source.bundle, Path(source.folder))
    if source.bundle.get("tangent") or any(s.after for s in source.served.values()):
        raise InputError(
            f"{name}: merge {source.bundle['made'].get('merge')} answers from more than a change of f, and no gate can mix"
            " it; take the run that it was made of"
        )
    shared = source.bundle.get("shared") or {}
    first, many = shared.get("bank") or len(source.banks), shared.get("slots", 0)
    found = trained_alone(name, source)
    slots: dict[int, dict[str, Served]] = {}
    for task, served in source.served.items():
        if served.slot and all(task not in e.tasks for e in found):  # else it answers from f alone, or through a gate
            slots.setdefault(served.slot, {})[task] = served
    for slot, tasks in slots.items():
        called = next(iter(tasks)) if len(tasks) == 1 else f"{name} shared"
        found.append(Expert(called, name, tuple((bank, slot) for bank in source.banks[:first]), tasks))
    if any(bank.gate.library for bank in source.banks[first:]):  # copies of the tasks' own slots
        return found
    parts = [tuple((bank, i) for bank in source.banks[first:]) for i in range(1, many + 1)]
    return found + [Expert(f"{name} skill {i}", name, part, through(source, first, i)) for i, part in enumerate(parts, 1)]


def trained_alone(name: str, source: Model) -> list[Expert]:
    """What a fit with a gate over the tasks' own slots kept for a library: each task's slot with its key, and its head there.

    Not of a task that was removed, or whose name another one has by now.
    """
    said = source.bundle.get("experts")
    if not said:
        return []
    with readable(source.folder):
        whole = Model(source.folder, dict(source.bundle) | said, source.backbone)
        banks, now = whole.banks[said["shared"]["bank"] :], source.bundle["tasks"]
        same = {n: e["expert"] for n, e in said["tasks"].items() if n in now and now[n]["file"] == e["of"]}
        return [Expert(n, name, tuple((bank, i) for bank in banks), {n: whole.served[n]}) for n, i in same.items()]


def through(source: Model, first: int, slot: int) -> dict[str, Served]:
    """Tasks that answer through a slot that tasks trained together: all, unless constant weights give it to some alone."""

    def used(served: Served) -> bool:
        bank, route = source.banks[first], source.routes([served.number])[first]
        if route is None or route.who is None or not isinstance(bank.gate, Fixed):
            return route is not None
        return any(float(own["c"][slot - 1]) for own in bank.tables["gate"].get(int(route.who[0])).values())

    return {task: s for task, s in source.served.items() if s.record["rung"] == "shared" and used(s)}


def lacking(name: str, source: Source) -> str:
    """Why a source has no expert."""
    if isinstance(source, Bank):
        return f"{name}, a bank without slots"
    bundle = source.bundle if isinstance(source, Model) else open_bundle(Path(source))[1]
    if any(task["rung"] != "probe" for task in bundle["tasks"].values()):
        return f"{name}, which does not say whose slots its gate routes over: fit it again"
    return f"{name}, whose tasks all answer from the probe" if bundle["tasks"] else f"{name}, which has no tasks"


def distinct(found: Sequence[Expert]) -> list[Expert]:
    """Experts, and tasks, that have one name get that of their source before it. InputError where this does not help."""
    tasks = {(id(s), n, e.source) for e in found for n, s in e.tasks.items()}
    names, heads = Counter(e.name for e in found), Counter(n for _, n, _ in tasks)
    out = [replace(e, name=e.name if names[e.name] == 1 else f"{e.source}/{e.name}",
                   tasks={n if heads[n] == 1 else f"{e.source}/{n}": s for n, s in e.tasks.items()}) for e in found]  # fmt: skip
    left = Counter(e.name for e in out), Counter(n if heads[n] == 1 else f"{source}/{n}" for _, n, source in tasks)
    for what, count in zip(("experts", "tasks"), left, strict=True):
        if twice := next((n for n, c in count.items() if c > 1), None):
            raise InputError(f"two {what} are called {twice}: give the sources other labels, as in {{label: source}}")
    return out


def fits(name: str, bank: Bank, backbone: Backbone) -> None:
    """InputError when a bank was made for another f."""
    modules = dict(backbone.f.named_modules())
    for site in bank.sites:
        gone = [n for n in (site.name, site.read) if n not in modules]
        W = None if gone else site.weight(backbone.f)[0]
        want = {"norm": (site.d_out,), "embedding": (site.d_in, site.d_out)}.get(site.kind, (site.d_out, site.d_in))
        if gone or (W is not None and tuple(W.shape) != want):
            got = "which it lacks" if gone else f"which is {list(W.shape) if W is not None else W} there"
            raise InputError(
                f"{name} was made for another backbone than {backbone.id}: it sits at {site.key} {list(want)}, {got}"
            )


def together(experts: Sequence[Expert], backbone: Backbone, dense: bool = False) -> Bank:
    """The experts as slots of one bank (fp32, by_task), in their order; ``dense``: as changes of weights in any case."""
    alone = [e.alone for e in experts]
    parts = [part for part in alone if part is not None]
    first = experts[0].parts[0][0]
    if not dense and len(parts) == len(experts) and all(alike(first, bank) for bank, _ in parts):
        return stacked(first.delta, first.sites, [bare(bank, slot) for bank, slot in parts], first.tables["shared"].get(1))
    sites = list({s.key: s for e in experts for bank, _ in e.parts for s in bank.sites}.values())
    if not dense and len(parts) == len(experts) and all(isinstance(bank.delta, Lora) for bank, _ in parts):
        rank = max(bank.delta.rank for bank, _ in parts)  # type: ignore[attr-defined]
        return stacked(Lora(rank, float(rank)), sites, [padded(bank, slot, sites, rank) for bank, slot in parts], {"": {}})
    return stacked(Dense(), sites, dense_slots(experts, sites, backbone), {"": {}})


def alike(a: Bank, b: Bank) -> bool:
    """Whether slots of both can be slots of one bank."""
    layouts = [{t: k.tables[t].layout for t in k.slot_tables if t != "keys"} for k in (a, b)]
    same = torch.equal(a.tables["shared"].data.float(), b.tables["shared"].data.float())
    return a.delta == b.delta and a.sites == b.sites and layouts[0] == layouts[1] and same


def bare(bank: Bank, slot: int) -> Tree:
    """A slot without keys, floats in fp32."""
    return {s: {n: t.float() if t.is_floating_point() else t for n, t in p.items() if not n.startswith("key.")}
            for s, p in bank.take(slot).items()}  # fmt: skip


def padded(bank: Bank, slot: int, sites: Sequence[Site], rank: int) -> Tree:
    """A LoRA slot at another rank, its scale in b; zeros at sites that it does not have."""
    own, delta, pad = bare(bank, slot), bank.delta, torch.nn.functional.pad
    assert isinstance(delta, Lora)
    zero = {s.key: {"a": torch.zeros(s.d_in, rank), "b": torch.zeros(rank, s.d_out)} for s in sites}
    more, scale = rank - delta.rank, delta.alpha / delta.rank
    return zero | {k: {"a": pad(p["a"], (0, more)), "b": pad(p["b"] * scale, (0, 0, 0, more))} for k, p in own.items()}


def dense_slots(experts: Sequence[Expert], sites: Sequence[Site], backbone: Backbone) -> list[Tree]:
    """Each expert's change of f's weights, summed over its banks, with zeros where it changes nothing."""
    found: list[dict[str, Change]] = []
    for expert in experts:
        whole: dict[str, Change] = {}
        for bank, slot in expert.parts:
            try:
                change = changes(backbone.f, bank, slot)
            except InputError as error:
                raise InputError(
                    f"expert {expert.name}: {error}; such experts share a library only with their own kind"
                ) from None
            for key, (W, b) in change.items():
                old = whole.get(key, (None, None))
                whole[key] = (W if old[0] is None else old[0] if W is None else old[0] + W,
                              b if old[1] is None else old[1] if b is None else old[1] + b)  # fmt: skip
        found.append(whole)
    biased = {key for whole in found for key, (_, b) in whole.items() if b is not None}
    trees = []
    for whole in found:
        tree: Tree = {}
        for site in sites:
            shape = {"norm": (site.d_out,), "embedding": (site.d_in, site.d_out)}.get(site.kind, (site.d_out, site.d_in))
            W, b = whole.get(site.key, (None, None))
            tree[site.key] = {"W": torch.zeros(shape) if W is None else W}
            if site.key in biased:
                tree[site.key]["b"] = torch.zeros(site.d_out) if b is None else b
        trees.append(tree)
    return trees


def stacked(delta: Delta, sites: Sequence[Site], slots: Sequence[Tree], shared: Tree) -> Bank:
    bank = Bank(delta, ByTask(), list(sites))
    bank.adopt(slots[0], {}, shared or {"": {}})
    bank.add(slots)
    return bank


def keys_of(expert: Expert, gate: Gate, site: Site, p: Params, rng: Generator, seen: Params | None) -> Params:
    """An expert's key at one site: as it was learned with the expert, else read from its own numbers or its inputs."""
    own = [(bank, bank.take(slot)[site.key]) for bank, slot in expert.parts if any(s.key == site.key for s in bank.sites)]
    learned = [{n[4:]: t.float() for n, t in part.items() if n.startswith("key.")}
               for bank, part in own if type(bank.gate) is type(gate)]  # fmt: skip
    if len(learned) == 1 and learned[0]:
        return learned[0]
    factors = expert.alone and own and type(own[0][0].delta) in (Lora, Dense)
    mine = {n: t for n, t in own[0][1].items() if not n.startswith("key.")} if factors else p  # unpadded: others do not matter
    keys = gate.key(site, mine, rng, seen)
    if own and keys and gate.trained and not gate.needs:  # where the expert changes nothing any key will do
        name = card(gate)["method"].partition(".")[2]
        how = "with several deltas at one site" if learned else "without"
        raise InputError(
            f"gate {name} has keys that are learned, and {expert.name} was fitted {how}: fit it with gate: {name}, or use"
            " arrow, which reads its keys from the experts"
        )
    return keys
