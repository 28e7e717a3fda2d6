"""``Adapted``: f + banks + gates. The only file that knows HOW a delta reaches f.

Doors: *site* (a hook adds ``mix`` to a module's output) and *sequence* (prompts lengthen the input, are replaced per
block, and are cut from the output). f itself is never edited: hooks sit on a clone that shares its tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.core.bank import Bank, Table, Tree
from anabranch.core.delta import At, Delta, mix
from anabranch.core.site import Site, blocks, clone, tail
from anabranch.errors import InputError

LONG_RUN = 8  # rows in a row with the same slots from which one shared product beats a batched one (measured)


@dataclass(frozen=True)
class Route:
    """Which slots each row takes: ids [b, k] (0 = none), optional weights w [b, k], optional gate rows who [b]."""

    ids: Tensor
    w: Tensor | None = None
    who: Tensor | None = None
    runs: tuple[tuple[int, int], ...] = ()  # stretches of rows that share ids and who, known before the forward pass

    @classmethod
    def to(cls, ids: Tensor | Sequence[int], w: Tensor | None = None, who: Tensor | None = None) -> "Route":
        ids = torch.as_tensor(ids)
        ids = ids[:, None] if ids.ndim == 1 else ids
        rows = torch.cat([ids, *([who[:, None]] if who is not None else [])], 1).tolist()
        cuts = [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1]]
        return cls(ids, w, who, tuple(zip(cuts, [*cuts[1:], len(rows)], strict=True)))


class Adapted(nn.Module):
    """f with banks of deltas. One route at a time: a thread takes its own :meth:`twin`.

    ``adapted(inputs, routes)`` with ``routes`` None is f itself; a single Route serves every bank.
    ``sources[i][table]`` [rows, n] stands in for bank i's table, so that a trainer can hand in leaves.
    """

    def __init__(self, f: nn.Module, banks: Sequence[Bank], tail_from: int = 0) -> None:
        super().__init__()
        self._f, self.banks, self.tail_from = (f,), list(banks), tail_from
        low = [s for bank in banks for s in bank.sites if tail_from and s.depth < tail_from]
        if low:
            raise InputError(f"{low[0].key} lies below block {tail_from}, where the cached features enter; lower the tail")
        self.f = tail(f, tail_from) if tail_from else clone(f)
        self.f.requires_grad_(False)
        self.routes: list[Route | None] = [None] * len(self.banks)
        self.sources: list[dict[str, Tensor]] = [{} for _ in self.banks]
        self.seen: dict[str, At] | None = None  # set to {} to record what each site sees
        self._mask: Tensor | None = None
        self._ran: set[str] = set()
        self._held: dict[str, Tensor] = {}  # inputs that a region has read
        self._open: dict[tuple[int, int, int], Tree] = {}
        self._front = self._deep = 0  # soft tokens now in front of the text: for all of f, for the blocks now running
        self._hook()

    def twin(self) -> "Adapted":
        """Another view of the same tensors with its own hooks and route, for another thread."""
        return Adapted(self._f[0], self.banks, self.tail_from)

    def forward(self, inputs: Mapping[str, Tensor], routes: Route | Sequence[Route | None] | None = None,
                features: Tensor | None = None) -> Any:  # fmt: skip
        self.routes = list(routes) if isinstance(routes, Sequence) else [routes] * len(self.banks)
        if self.tail_from:
            self.f.features = features
        return self.f(**inputs)

    # ---- where the hooks are -------------------------------------------------------------------------------------
    def _hook(self) -> None:
        here: dict[str, list[tuple[int, Site]]] = {}
        for i, bank in enumerate(self.banks):
            for site in bank.sites if bank.delta.door == "site" else ():
                here.setdefault(site.name, []).append((i, site))
                if site.read:
                    read = partial(self._read, site.key)
                    self.f.get_submodule(site.read).register_forward_pre_hook(read)
        for name, entries in here.items():
            self.f.get_submodule(name).register_forward_hook(partial(self._write, name, entries))
        prompts = [i for i, bank in enumerate(self.banks) if bank.delta.door == "sequence"]
        self._embedded = [i for i in prompts if self.banks[i].sites[0].role == "embedding"]
        deep = {(i, s.depth): s for i in prompts if i not in self._embedded for s in self.banks[i].sites}
        first = min((depth for _, depth in deep), default=None)
        if first is not None:
            for depth, block in list(enumerate(blocks(self.f)[1]))[first:]:
                now = [(i, s) for (i, d), s in deep.items() if d == depth]
                block.register_forward_pre_hook(partial(self._prefix, now, depth == first), with_kwargs=True)
            block.register_forward_hook(self._cut)
        self.f.register_forward_pre_hook(self._enter, with_kwargs=True)
        self.f.register_forward_hook(self._leave, with_kwargs=True)
        self._expected = set(here)

    def _enter(self, f: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._ran, self._open, self._front, self._deep = set(), {}, 0, 0
        self._mask, past = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        self._started = past is not None and past.get_seq_length() > 0
        for i in self._embedded:
            kwargs = self._lengthen(f, i, kwargs)
        return args, kwargs

    def _lengthen(self, f: nn.Module, i: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.routes[i] is None:
            return kwargs
        if not kwargs.keys() & {"input_ids", "inputs_embeds"}:
            raise InputError(f"{type(f).__name__} has no token embedding in front of which a prompt fits; use {{deep_prompt: {{}}, at: 'block[:1]'}}")
        x = kwargs.pop("inputs_embeds", None)
        x = f.get_input_embeddings()(kwargs.pop("input_ids")) if x is None else x
        mask = kwargs.get("attention_mask")
        mask = x.new_ones(x.shape[:2], dtype=torch.long) if mask is None else mask
        tokens, on = self._tokens(i, self.banks[i].sites[0], x, mask)
        m = tokens.shape[1]
        x = x if self._started else torch.cat([tokens, x], 1)
        longer = torch.cat([on[:, None].expand(-1, m).to(mask.dtype), mask], 1)
        positions = torch.arange(x.shape[1], device=x.device) - torch.where(on, 0, m)[:, None]
        extra: dict[str, Any] = {} if self._started else {"position_ids": positions.clamp(min=0)}
        if kwargs.get("token_type_ids") is not None:
            extra["token_type_ids"] = torch.nn.functional.pad(kwargs["token_type_ids"], (m, 0))
        self._front, self._mask = self._front + (0 if self._started else m), longer
        return {**kwargs, **extra, "inputs_embeds": x, "attention_mask": longer}

    def _prefix(self, now: list[tuple[int, Site]], first: bool, block: nn.Module, args: tuple[Any, ...],
                kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
        """Before a block: inserts (at the first) or replaces the soft tokens, and widens the masks that f made for l tokens."""
        now = [(i, s) for i, s in now if self.routes[i] is not None]
        if not now and not self._deep:
            return args, kwargs
        if self._started:
            raise InputError("deep prompts do not work with a cache of keys and values: generate with use_cache=False")
        kwargs = dict(zip(signature(block.forward).parameters, args, strict=False)) | kwargs
        x = kwargs.pop("hidden_states")
        old = x[:, self._deep :]
        if now:
            tokens, on = zip(*(self._tokens(i, site, old, self._rows_mask(old)) for i, site in now), strict=True)
            self._visible = torch.cat([o[:, None].expand(-1, t.shape[1]) for t, o in zip(tokens, on, strict=True)], 1)
            self._deep = self._visible.shape[1]
            x = torch.cat([*tokens, old], 1)
        widen = partial(_widen, m=self._deep, total=x.shape[1], visible=self._visible)
        kwargs = {n: v if n == "past_key_values" else widen(v) for n, v in kwargs.items()}
        if not self._visible.all() and not any(isinstance(v, Tensor) and v.ndim == 4 for v in kwargs.values()):
            if "attention_mask" not in signature(block.forward).parameters:
                raise InputError(f"{type(block).__name__} takes no mask: rows with and without prompts cannot share a batch")
            kwargs["attention_mask"] = _fresh_mask(block, x, self._visible)
        return (x,), kwargs

    def _cut(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        m, self._deep = self._deep, 0
        return output[:, m:] if isinstance(output, Tensor) else (output[0][:, m:], *output[1:])

    def _leave(self, f: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if not torch.compiler.is_compiling() and any(r is not None for r in self.routes) and self._expected - self._ran:
            raise InputError(
                f"these sites did not run in f's forward pass, so their deltas would be lost: {sorted(self._expected - self._ran)};"
                " place the delta on a module that f calls (nn.MultiheadAttention never calls its out_proj)"
            )
        if self._front:
            for name, t in out.items():
                if isinstance(t, Tensor) and t.ndim == 3:
                    out[name] = t[:, self._front :]
        return out

    def _read(self, key: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._held[key] = args[0]

    def _write(self, name: str, entries: list[tuple[int, Site]], module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self._ran.add(name)
        y = output if isinstance(output, Tensor) else output[0]
        for stage in sorted({self.banks[i].stage for i, _ in entries}):
            base = y
            for i, site in entries:
                if self.banks[i].stage != stage or self.routes[i] is None:
                    continue
                x = self._held.pop(site.key) if site.read else args[0]
                dy = self._change(i, site, module, x, base[..., site.columns])
                y = y + dy if not site.stop else torch.cat([y[..., : site.start], y[..., site.columns] + dy, y[..., site.stop :]], -1)
        return y if isinstance(output, Tensor) else (y, *output[1:])

    # ---- what they add -------------------------------------------------------------------------------------------
    def _change(self, i: int, site: Site, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        flat = y.ndim == 2  # a pooled vector is a sequence of one
        W, b = site.weight(self.f)
        if flat:
            x, y = x[:, None], y[:, None]
        at = At(x, y, self._rows_mask(y), W, b, module if site.kind in ("norm", "embedding") else None)
        if self.seen is not None:
            self.seen[site.key] = at
        dy = self._spread(i, site, at).to(y.dtype)
        return dy[:, 0] if flat else dy

    def _tokens(self, i: int, site: Site, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        route = self.routes[i]
        if route is None:
            raise InputError("soft tokens need a route for every row")
        at = At(x, x, mask.bool(), None, None, None)
        return self._spread(i, site, at).to(x.dtype), (route.ids > 0).any(1)

    def _rows_mask(self, y: Tensor) -> Tensor:
        mask = self._mask
        if mask is None or mask.ndim != 2 or mask.shape[1] > y.shape[1]:
            return y.new_ones(y.shape[:2], dtype=torch.bool)
        return torch.nn.functional.pad(mask.bool(), (y.shape[1] - mask.shape[1], 0), value=True)

    def _spread(self, i: int, site: Site, at: At) -> Tensor:
        """dy of all rows: long runs of rows with the same slots share one product, the other rows gather theirs."""
        route, delta = self.routes[i], self.banks[i].delta
        assert route is not None
        if len(route.ids) != len(at.y):
            raise InputError(
                f"the route has {len(route.ids)} rows, {site.key or 'f'} saw {len(at.y)}: beam search and num_return_sequences"
                " enlarge the batch; repeat the ids of the route as often"
            )
        matrix = type(delta).apply is Delta.apply  # it would build a matrix per row: one per run instead
        parts: list[Tensor] = []
        for start, stop, long in self._stretches(route, matrix):
            rows = At(at.x[start:stop], at.y[start:stop], at.mask[start:stop], at.W, at.b, at.module)
            parts.append(self._rows(i, site, rows, route, start, stop, long))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _stretches(self, route: Route, matrix: bool) -> list[tuple[int, int, bool]]:
        if torch.compiler.is_compiling() or not route.runs:
            return [(0, len(route.ids), False)]
        out: list[tuple[int, int, bool]] = []
        for start, stop in route.runs:
            if matrix or stop - start >= LONG_RUN:
                out.append((start, stop, True))
            elif out and not out[-1][2]:
                out[-1] = (out[-1][0], stop, False)
            else:
                out.append((start, stop, False))
        return out

    def _rows(self, i: int, site: Site, at: At, route: Route, start: int, stop: int, long: bool) -> Tensor:
        bank = self.banks[i]
        own = dict(self._opened(i, route, start, stop, long, at.y.dtype).get(site.key, {}))
        keys = {n[4:]: own.pop(n) for n in list(own) if n.startswith("key.")}
        mine = {n[5:]: own.pop(n) for n in list(own) if n.startswith("gate.")}
        shared = self._opened(i, route, start, stop, long, at.y.dtype).get("", {})
        ids = route.ids[start:stop]
        w = None if route.w is None else route.w[start:stop]
        return mix(bank.delta, bank.gate, own, shared, keys, mine, ids > 0, w, at, same=long)

    def _opened(self, i: int, route: Route, start: int, stop: int, long: bool, dtype: torch.dtype) -> Tree:
        """Per site: the tensors of a stretch's slots, [k, ...] for a run of equal rows, [b, k, ...] otherwise; once a forward."""
        key = (i, start, stop)
        if key not in self._open:
            bank, tree = self.banks[i], {}  # type: tuple[Bank, Tree]
            ids = route.ids[start] if long else route.ids[start:stop]
            for name in bank.slot_tables:
                prefix = "key." if name == "keys" else ""
                _into(tree, self._gather(i, name, ids, dtype), prefix)
            if route.who is not None and bank.tables["gate"].n:
                who = route.who[start] if long else route.who[start:stop]
                _into(tree, self._gather(i, "gate", who, dtype), "gate.")
            if bank.tables["shared"].n:
                one = torch.ones((), dtype=torch.long, device=route.ids.device)
                _into(tree, self._gather(i, "shared", one, dtype), "")
            self._open[key] = tree
        return self._open[key]

    def _gather(self, i: int, name: str, ids: Tensor, dtype: torch.dtype) -> Tree:
        table: Table = self.banks[i].tables[name]
        source = self.sources[i].get(name, table.data)
        rows = source[ids]
        return table.split(rows.to(dtype) if rows.is_floating_point() else rows)


def _into(tree: Tree, more: Tree, prefix: str) -> None:
    for site, names in more.items():
        tree.setdefault(site, {}).update({prefix + n: t for n, t in names.items()})


def _fresh_mask(block: nn.Module, x: Tensor, visible: Tensor) -> Tensor:
    """The additive mask [b, 1, l, l] that f left out because every token was real."""
    total, causal = x.shape[1], any(getattr(m, "is_causal", False) for m in block.modules())
    seen = torch.ones(total, total, dtype=torch.bool, device=x.device)
    columns = torch.nn.functional.pad(visible, (0, total - visible.shape[1]), value=True)
    shown = (seen.tril() if causal else seen) & columns[:, None, None, :]
    return torch.where(shown, 0.0, torch.finfo(x.dtype).min).to(x.dtype)


def _widen(t: Any, m: int, total: int, visible: Tensor) -> Any:
    """An attention mask [b, 1, l, l] or rotary tables [b, l, d] made for l tokens, for m soft tokens in front of them."""
    if isinstance(t, tuple):
        return tuple(_widen(part, m, total, visible) for part in t)
    if not isinstance(t, Tensor) or t.ndim < 3 or t.shape[-2] + m != total:
        return t
    if t.ndim == 3:
        return torch.cat([t[:, :1].expand(-1, m, -1), t], 1)
    hidden = False if t.dtype is torch.bool else torch.finfo(t.dtype).min
    shown = True if t.dtype is torch.bool else 0.0
    front = torch.where(visible, torch.full_like(visible, shown, dtype=t.dtype), hidden)[:, None, None, :]
    t = t.expand(len(visible), -1, -1, -1)
    rows = torch.cat([t[:, :, :1], t], 2) if m == 1 else torch.cat([t[:, :, :1].expand(-1, -1, m, -1), t], 2)
    return torch.cat([front.expand(-1, t.shape[1], total, -1), rows], 3)

