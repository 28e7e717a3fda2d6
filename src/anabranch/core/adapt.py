"""``Adapted``: f + banks + gates. The only file that knows HOW a delta reaches f.

Doors: *site* (a hook adds ``mix`` to a module's output), *sequence* (prompts lengthen the input, are replaced per block,
and are cut from the output) and *attention* (keys and values in front of a module's own). f itself is never edited: hooks sit
on a clone that shares its tensors.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.core.attention import listen
from anabranch.core.bank import Bank
from anabranch.core.delta import At, mix
from anabranch.core.lowrank import Runs
from anabranch.core.route import Opened, Route
from anabranch.core.sequence import fresh_mask, input_of, positions, trimmed, widen, with_first
from anabranch.core.site import Site, blocks, clone, tail
from anabranch.errors import InputError


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
        self._open: dict[int, Opened] = {}
        self._front = 0  # soft tokens in front of the text in all of f
        self._deep: dict[int, Tensor] = {}  # block -> [b, m] bool, which of the m soft tokens in front of it its rows see
        self._hook()

    def twin(self) -> "Adapted":
        """Another view of the same tensors with its own hooks and route, for another thread."""
        return Adapted(self._f[0], self.banks, self.tail_from)

    def forward(self, inputs: Mapping[str, Tensor], routes: Route | Sequence[Route | None] | None = None,
                features: Tensor | None = None) -> Any:  # fmt: skip
        self.routes = list(routes) if isinstance(routes, Sequence) else [routes] * len(self.banks)
        if len(self.routes) != len(self.banks):
            raise InputError(f"the {len(self.banks)} banks need one route each, or one for all, got {len(self.routes)} routes")
        if self.tail_from:
            vars(self.f)["features"] = features
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
        for i, site in [(i, s) for i, bank in enumerate(self.banks) if bank.delta.door == "attention" for s in bank.sites]:
            listen(self.f.get_submodule(site.name), partial(self._front_of, i, site))
        prompts = [i for i, bank in enumerate(self.banks) if bank.delta.door == "sequence"]
        self._embedded = [i for i in prompts if self.banks[i].sites[0].role == "embedding"]
        deep = {(i, s.depth): s for i in prompts if i not in self._embedded for s in self.banks[i].sites}
        first = min((depth for _, depth in deep), default=None)
        if first is not None:
            for depth, block in list(enumerate(blocks(self.f)[1]))[first:]:
                now = [(i, s) for (i, d), s in deep.items() if d == depth]
                block.register_forward_pre_hook(partial(self._prefix, now, depth), with_kwargs=True)
            block.register_forward_hook(partial(self._cut, depth))
        self.f.register_forward_pre_hook(self._enter, with_kwargs=True)
        self.f.register_forward_hook(self._leave, with_kwargs=True)
        self._expected = set(here)

    def _enter(self, f: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._ran, self._open, self._front, self._deep, self._held = set(), {}, 0, {}, {}
        dtype = next((p.dtype for p in f.parameters() if p.is_floating_point()), torch.float32)
        for i, route in enumerate(self.routes):  # now, so that a checkpointed block gathers nothing and replays as it ran
            if route is not None:
                self._open[i] = Opened(self.banks[i], self.sources[i], route, dtype)
        self._mask, past = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        self._started = past is not None and past.get_seq_length() > 0
        embedded = [i for i in self._embedded if self.routes[i] is not None]
        return args, self._lengthen(f, embedded, kwargs) if embedded else kwargs

    def _lengthen(self, f: nn.Module, banks: list[int], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Soft tokens in front of the embedded text, visible to the rows that have them; positions move by what is visible."""
        if not kwargs.keys() & {"input_ids", "inputs_embeds"}:
            raise InputError(
                f"{type(f).__name__} embeds no tokens: instead of a prompt use {{deep_prompt: {{}}, at: 'block[:1]'}}"
            )
        x = kwargs.pop("inputs_embeds", None)
        x = f.get_input_embeddings()(kwargs.pop("input_ids")) if x is None else x  # type: ignore[operator]
        mask = kwargs.get("attention_mask")
        mask = x.new_ones(x.shape[:2], dtype=torch.long) if mask is None else mask
        found = [self._tokens(i, self.banks[i].sites[0], x, mask) for i in banks]
        visible = torch.cat([on[:, None].expand(-1, t.shape[1]) for t, on in found], 1)
        soft, text = positions(f, mask, visible, kwargs.get("position_ids"), x.shape[1])
        extra: dict[str, Any] = {"position_ids": text}
        if not self._started:
            x = torch.cat([*(t for t, _ in found), x], 1)
            extra["position_ids"] = torch.cat([soft, text], 1)
            self._front = visible.shape[1]
            if kwargs.get("token_type_ids") is not None:
                extra["token_type_ids"] = torch.nn.functional.pad(kwargs["token_type_ids"], (self._front, 0))
        self._length, self._mask = x.shape[1], torch.cat([visible.to(mask.dtype), mask], 1)
        return {**kwargs, **extra, "inputs_embeds": x, "attention_mask": self._mask}

    def _prefix(self, now: list[tuple[int, Site]], depth: int, block: nn.Module, args: tuple[Any, ...],
                kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
        """Before a block: inserts (at the first) or replaces the soft tokens, and widens the masks that f made for l tokens."""
        now, visible = [(i, s) for i, s in now if self.routes[i] is not None], self._deep.get(depth - 1)
        if not now and visible is None:
            return args, kwargs
        if self._started:
            raise InputError("deep prompts do not work with a cache of keys and values: generate with use_cache=False")
        kwargs = dict(zip(signature(block.forward).parameters, args, strict=False)) | kwargs
        x = kwargs.pop("hidden_states")
        if now:
            old = x if visible is None else x[:, visible.shape[1] :]
            tokens, on = zip(*(self._tokens(i, site, old, self._rows_mask(old)) for i, site in now), strict=True)
            visible = torch.cat([o[:, None].expand(-1, t.shape[1]) for t, o in zip(tokens, on, strict=True)], 1)
            x = torch.cat([*tokens, old], 1)
        assert visible is not None
        self._deep[depth] = visible  # kept until the next forward pass: a checkpointed block runs again
        wider = partial(widen, m=visible.shape[1], total=x.shape[1], visible=visible)
        kwargs = {n: v if n == "past_key_values" else wider(v) for n, v in kwargs.items()}
        masked = any(isinstance(v, Tensor) and v.ndim == 4 for v in kwargs.values())
        if not masked and (torch.compiler.is_compiling() or not visible.all()):
            if "attention_mask" not in signature(block.forward).parameters:
                raise InputError(f"{type(block).__name__} takes no mask: rows with and without prompts cannot share a batch")
            kwargs["attention_mask"] = fresh_mask(block, x, visible)
        return (x,), kwargs

    def _cut(self, depth: int, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        m = self._deep[depth].shape[1] if depth in self._deep else 0
        return output[:, m:] if isinstance(output, Tensor) else (output[0][:, m:], *output[1:])

    def _leave(self, f: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if not torch.compiler.is_compiling() and any(r is not None for r in self.routes) and self._expected - self._ran:
            lost = f"{sorted(self._expected - self._ran)} did not run in f's forward pass, so their deltas would be lost"
            raise InputError(f"{lost}: take modules that f calls (nn.MultiheadAttention never calls its out_proj)")
        if not self._front:
            return out
        if isinstance(out, dict) and out.get("pooler_output") is not None:
            raise InputError("f pools its first token, whose place a prompt takes: use deep_prompt, or load f without its pooler")
        return trimmed(out, self._front, self._length)

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
                if site.read and site.key not in self._held:
                    raise InputError(f"{site.key} reads behind where it writes: turn it round")
                x = self._held[site.key] if site.read else input_of(site, args, y)
                dy = self._change(i, site, x, base[..., site.columns])
                cut = [y[..., : site.start], y[..., site.columns] + dy, y[..., site.stop :]] if site.stop else []
                y = torch.cat(cut, -1) if cut else y + dy
        return with_first(output, y)

    # ---- what they add -------------------------------------------------------------------------------------------
    def _change(self, i: int, site: Site, x: Tensor, y: Tensor) -> Tensor:
        flat = y.ndim == 2  # a pooled vector is a sequence of one
        W, b = site.weight(self.f)
        if flat:
            x, y = x[:, None], y[:, None]
        if site.kind == "embedding" and len(y) == 1:  # a table of places, the same for all rows
            x, y = (t.expand(self._open[i].parts[-1].stop, *t.shape[1:]) for t in (x, y))
        own = site.module(self._f[0]) if site.kind in ("norm", "embedding") else None  # that of f itself: no hook runs in it
        at = At(x, y, self._rows_mask(y), W, b, own)
        dy = self._spread(i, site, at).to(y.dtype)
        return dy[:, 0] if flat else dy

    def _front_of(self, i: int, site: Site, x: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.routes[i] is None:
            return None
        found, on = self._tokens(i, site, x, self._rows_mask(x))
        return found.unflatten(1, (2, -1)), on

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
        route, bank, out = self.routes[i], self.banks[i], []
        assert route is not None
        if self.seen is not None:
            self.seen[site.key] = at
        if len(route.ids) != len(at.y):
            wrong = f"the route has {len(route.ids)} rows, {site.key or 'f'} saw {len(at.y)}"
            raise InputError(f"{wrong}: beam search and num_return_sequences enlarge the batch; repeat the ids as often")
        parts = self._open[i].parts
        if route.w is None and bank.gate.plain and (runs := self._open[i].factors(site.key, at.y.dtype)):
            ends = [part.stop * at.x.shape[1] for part in parts]
            return Runs.apply(at.x.flatten(0, 1), ends, *(a for a, _ in runs), *(b for _, b in runs)).view_as(at.y)
        sizes = [part.stop - part.start for part in parts]
        split = zip(*(t.split(sizes) for t in (at.x, at.y, at.mask)), strict=True)
        for part, (x, y, mask) in zip(parts, split, strict=True):
            own, keys, mine, shared = self._open[i].at(part, site.key, at.y.dtype)
            on = None if part.full else route.ids[part.start : part.stop] > 0
            w = None if route.w is None else route.w[part.start : part.stop]
            rows = At(x, y, mask, at.W, at.b, at.module)
            out.append(mix(bank.delta, bank.gate, own, shared, keys, mine, on, w, rows, part.same, part.alone))
        return out[0] if len(out) == 1 else torch.cat(out)
