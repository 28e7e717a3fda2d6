"""Many deltas into one (``merge``), two state dicts into a delta (``difference``), a dense slot into a low rank (``factor``)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.core.bank import Bank, Tree
from anabranch.core.fold import Change, changes
from anabranch.core.names import make
from anabranch.core.site import Site, blocks, find, region
from anabranch.core.site import site as site_of
from anabranch.errors import InputError


def merge(f: nn.Module, parts: Sequence[tuple[Bank, int]], combine: Callable[..., Tensor],
          seen: Mapping[str, Mapping[str, Tensor]] | None = None) -> Bank:  # fmt: skip
    """One dense slot from many slots of any kinds and ranks, through their dW: combine rows [t, *shape] -> [*shape] per site.

    A slot that does not touch a site counts as zero there. combine's ``whole`` holds ``{"norm": [t]}`` over all sites, and
    ``seen``: what a merge needs of the tasks' data, {"gram" or "fisher": {site key: [t, ...]}}.
    """
    if not parts:
        raise InputError("nothing to merge: give at least one slot")
    for bank in {id(bank): bank for bank, _ in parts}.values():
        placed(f, bank)
    found = [changes(f, bank, slot) for bank, slot in parts]
    for (_, slot), change in zip(parts, found, strict=True):
        bad = [k for k, c in change.items() if any(t is not None and not torch.isfinite(t).all() for t in c)]
        if bad:
            raise InputError(f"slot {slot} is not finite at {bad[0]}; a merge of it would be NaN everywhere")
    sites = list({s.key: s for bank, _ in parts for s in bank.sites}.values())
    norms = [sum(float(t.norm()) ** 2 for c in change.values() for t in c if t is not None) ** 0.5 for change in found]
    whole = {"norm": torch.tensor(norms), **(seen or {})}
    tree: Tree = {}
    for site in sites:
        W, b = site.weight(f)
        empty: Change = (None, None)
        here = [change.get(site.key, empty) for change in found]
        tree[site.key] = {"W": combine(_rows([c[0] for c in here], W), site, whole)}
        if any(c[1] is not None for c in here):
            tree[site.key]["b"] = combine(_rows([c[1] for c in here], b), site, whole)
        elif site.biased:
            tree[site.key]["b"] = torch.zeros(site.d_out)
    return dense_bank(sites, tree)


def summed(f: nn.Module, banks: Sequence[Bank], slots: Sequence[int]) -> Bank:
    """Dense slots 1, 2, ...: each changes f as one of ``slots`` of all banks together, which do not see each other."""
    if len({bank.stage for bank in banks}) > 1:
        raise InputError("deltas of several stages see each other, so their changes of f do not add up; merge those of one stage")
    made, *others = [merge(f, [(bank, slot) for bank in banks], lambda rows, *_: rows.sum(0)) for slot in slots]
    made.add([one.take(1) for one in others])
    return made


def placed(f: nn.Module, bank: Bank) -> None:
    """InputError where a site of the bank is none of f, or one of other widths: then it was made for another backbone."""
    names = {n for n, _ in f.named_modules()}
    for s in bank.sites:
        lost = [n for n in (s.name, *([s.read] if s.read else [])) if n not in names]
        if lost:
            raise InputError(f"the bank is of another backbone: {type(f).__name__} has no module {lost[0]}")
        here = in_f(f, s)
        if (here.kind, here.d_in, here.d_out) != (s.kind, s.d_in, s.d_out):
            raise InputError(
                f"the bank is of another backbone: at {s.key} it goes from {s.d_in} to {s.d_out} numbers ({s.kind}), "
                f"{type(f).__name__} from {here.d_in} to {here.d_out} ({here.kind})"
            )


def difference(f: nn.Module, state: Mapping[str, Tensor], at: Any = "*") -> Bank:
    """The task vector ``state - f`` as a bank of one dense slot; InputError names keys or shapes that differ."""
    base = f.state_dict()
    lacks = [f"{who} lacks {some(b.keys() - a.keys())}"
             for who, a, b in (("f", base, state), ("the state dict", state, base)) if b.keys() - a.keys()]  # fmt: skip
    if lacks:
        raise InputError(f"the state dict is not one of f's architecture: {'; '.join(lacks)}")
    odd = next((k for k in base if base[k].shape != state[k].shape), None)
    if odd:
        raise InputError(f"{odd} is {list(base[odd].shape)} in f and {list(state[odd].shape)} in the state dict")
    sites = [s for s in find(f, at) if s.kind != "module"]
    held = {f"{s.name}.{n}" for s in sites for n in ("weight", "bias")}
    lost = [k for k in base if at == "*" and k not in held and not torch.equal(base[k], state[k])]
    if lost:
        raise InputError(f"no site holds the change of {lost[0]}; leave it out by naming the sites, as in at='mlp.*'")
    tree: Tree = {}
    for site in sites:
        W, b = (None if t is None else t.detach().float() for t in site.weight(f))
        assert W is not None
        new = {n: state[f"{site.name}.{n}"].float() for n in ("weight", "bias") if f"{site.name}.{n}" in state}
        new["weight"] = new["weight"].mT if site.kind == "transposed" else new["weight"]
        cut = slice(None) if site.kind == "embedding" else site.columns
        tree[site.key] = {"W": new["weight"][cut] - W}
        if b is not None:
            tree[site.key]["b"] = new["bias"][site.columns] - b
    return dense_bank(sites, tree)


def factor(bank: Bank, slot: int, rank: int) -> tuple[Bank, float]:
    """A dense slot as LoRA of ``rank`` (best in the Frobenius norm), and the share of the squared norm that it loses."""
    tree: Tree = {}
    lost = total = 0.0
    linear = [s for s in bank.sites if s.kind in ("linear", "transposed")]
    dense = bank.take(slot)
    for site in linear:
        u, s, vh = torch.linalg.svd(dense[site.key]["W"].float(), full_matrices=False)
        root = s[:rank].sqrt()
        tree[site.key] = {"a": (vh[:rank] * root[:, None]).mT.contiguous(), "b": (u[:, :rank] * root).mT.contiguous()}
        lost, total = lost + float((s[rank:] ** 2).sum()), total + float((s**2).sum())
    rest = [p for s in bank.sites for n, p in dense[s.key].items() if n == "b" or s not in linear]
    lost += sum(float(t.float().norm()) ** 2 for t in rest)
    total += sum(float(t.float().norm()) ** 2 for t in rest)
    low = Bank(make("delta", {"lora": {"rank": rank, "alpha": float(rank)}}), make("gate", "by_task"), linear)
    low.adopt(tree, {}, {})
    low.add([tree])
    return low, lost / total if total else 0.0


def dense_bank(sites: Sequence[Site], tree: Tree) -> Bank:
    bank = Bank(make("delta", "dense"), make("gate", "by_task"), list(sites))
    bank.adopt(tree, {}, {})
    bank.add([tree])
    return bank


def in_f(f: nn.Module, s: Site) -> Site:
    """The site as f itself has it."""
    prefix, stack = blocks(f)
    return region(f, s.read, s.name, prefix, len(stack)) if s.read else site_of(f, s.name, s.role, prefix, len(stack))


def some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")


def _rows(parts: Sequence[Tensor | None], like: Tensor | None) -> Tensor:
    known = next((p for p in parts if p is not None), like)
    if known is None:
        raise InputError("a site without weights cannot be merged")
    return torch.stack([torch.zeros_like(known, dtype=torch.float32) if p is None else p for p in parts])
