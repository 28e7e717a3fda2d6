"""Between banks and dense trees, and between trees: what merges share that work on whole models."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.core.bank import Bank, Tree
from anabranch.core.delta import Delta, Params
from anabranch.core.fold import changes
from anabranch.core.names import make
from anabranch.core.site import Site
from anabranch.errors import InputError


def trees_of(f: nn.Module, bank: Bank, base: Tree | None = None) -> list[Tree]:
    """Each slot's change of f (of f + base) as a dense tree {site key: {"W", "b" where f has one}}, fp32; InputError for what
    is not finite."""
    out, state = [], dict(f.state_dict())
    for site in bank.sites:
        p = (base or {}).get(site.key, {})
        site.put(state, p.get("W"), p.get("b"))
    for slot in range(1, len(bank) + 1):
        tree: Tree = {site.key: {} for site in bank.sites}
        found = changes(f, bank, slot, state)
        for site in bank.sites:
            for name, t, own in zip("Wb", found[site.key], site.weight(f), strict=True):
                if own is None and t is not None:
                    raise InputError(f"f has no {name} at {site.key}, so slot {slot}'s cannot be merged into it")
                if t is not None and not torch.isfinite(t).all():
                    raise InputError(f"slot {slot} is not finite at {site.key}; a merge of it would be NaN everywhere")
                if own is not None:
                    tree[site.key][name] = torch.zeros_like(own, dtype=torch.float32) if t is None else t
        out.append(tree)
    return out


def stacked(trees: Sequence[Tree]) -> Tree:
    """One tree of rows [t, *shape]; a tensor that a tree lacks counts as zero."""
    out: Tree = {}
    for key, n, like in ((key, n, t) for tree in trees for key, p in tree.items() for n, t in p.items()):
        if n not in out.setdefault(key, {}):
            out[key][n] = torch.stack([tree.get(key, {}).get(n, torch.zeros_like(like)) for tree in trees])
    return out


def mapped(rows: Tree, combine: Callable[[str, str, Tensor], Tensor]) -> Tree:
    """combine(site key, name, rows [t, *shape]) -> [*shape], at every tensor of a stacked tree."""
    return {key: {n: combine(key, n, t) for n, t in p.items()} for key, p in rows.items()}


def combined(trees: Sequence[Tree], sites: Iterable[Site], spec: Any) -> Tree:
    """The trees under a merge of form combine, by its name, with the norms of whole trees; InputError for another form."""
    method, by_key = make("merge", spec), {s.key: s for s in sites}
    whole = {"norm": torch.stack([norm(tree) for tree in trees])}
    return mapped(stacked(trees), lambda key, n, rows: method(rows, by_key.get(key), whole))


def norm(tree: Tree) -> Tensor:
    return torch.stack([t.norm() for p in tree.values() for t in p.values()]).norm()


def bank_of(delta: Delta, sites: Sequence[Site], slots: Sequence[Tree], shared: Params | None = None) -> Bank:
    """A bank of these slots, each taken by the rows of its task."""
    bank = Bank(delta, make("gate", "by_task"), list(sites))
    bank.adopt(slots[0], {}, {"": shared or {}})
    bank.add(slots)
    return bank


def dense(sites: Sequence[Site], trees: Sequence[Tree]) -> Bank:
    return bank_of(make("delta", "dense"), sites, trees)


def several(count: int, method: str, least: int = 2) -> None:
    if count < least:
        raise InputError(f"{method} merges at least {least} tasks, got {count}")


def descend(parameters: Mapping[str, Tensor], loss: Callable[[], Tensor], steps: int, optimiser: torch.optim.Optimizer,
            keep: Callable[[Tensor], Tensor] = lambda value: value[0]) -> Params:  # fmt: skip
    """Minimises the first number of ``loss()`` [k] and returns the parameters, of the start and all steps, whose
    ``keep(loss())`` was lowest."""
    best, lowest = {n: p.detach().clone() for n, p in parameters.items()}, torch.tensor(torch.inf)
    with torch.enable_grad():
        for step in range(steps + 1):
            value = loss()
            if keep(value.detach()) < lowest:
                best, lowest = {n: p.detach().clone() for n, p in parameters.items()}, keep(value.detach())
            if step < steps:
                optimiser.zero_grad()
                value[0].backward()
                optimiser.step()
    return best
