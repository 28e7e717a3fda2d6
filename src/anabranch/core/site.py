"""Where in f a delta sits. The one place that knows weight orientation, fused slices, regions, roles and depth.

``at`` is a role (``attention.query``), a module path or glob (``encoder.layer.*.output.dense``), a region ``read->write``,
or a list of these. A slice over blocks narrows any of them: ``attention.query[-2:]`` is the last two blocks.
"""

import copy
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn

from anabranch.errors import InputError, nearest

# Role -> endings of module paths, for BERT, DistilBERT, Llama-like, GPT-2-like, ViT and T5-like models.
ROLES = {
    "attention.query": r"(self|attention)\.(query|q_proj|q_lin)|(self_attn|attn)\.q_proj|(Self|EncDec)Attention\.q|c_attn",
    "attention.key": r"(self|attention)\.(key|k_proj|k_lin)|(self_attn|attn)\.k_proj|(Self|EncDec)Attention\.k|c_attn",
    "attention.value": r"(self|attention)\.(value|v_proj|v_lin)|(self_attn|attn)\.v_proj|(Self|EncDec)Attention\.v|c_attn",
    "attention.out": r"attention\.(output\.dense|out_lin|o_proj|out_proj)|self_attn\.(o_proj|out_proj)|attn\.c_proj|"
    r"(Self|EncDec)Attention\.o",
    "mlp.gate": r"mlp\.gate_proj|DenseReluDense\.wi_0",
    "mlp.in": r"intermediate\.dense|mlp\.(up_proj|c_fc|fc1)|ffn\.lin1|DenseReluDense\.wi(_1)?",
    "mlp.out": r"(?<!attention\.)output\.dense|mlp\.(down_proj|c_proj|fc2)|ffn\.lin2|DenseReluDense\.wo",
    "norm": r"[^.]*([lL]ayer_?[nN]orm|norm|ln_)[^.]*",
    "embedding": r"embeddings|embed_tokens|wte",
}
WHOLE = ("block", "attention", "output")  # roles of whole modules: one block, what attends in it, all of f
PARTS = {"attention.query": 0, "attention.key": 1, "attention.value": 2}  # the order inside a fused c_attn


@dataclass(frozen=True)
class Site:
    """One place: reads x at the input of ``read``, writes y at the output of ``name`` (columns ``start:stop`` of it)."""

    name: str
    role: str
    depth: int  # index of its block; -1 before the blocks, their number behind them
    kind: str  # linear | transposed | norm | embedding | module
    d_in: int
    d_out: int
    read: str = ""  # another module for a region, else the module itself
    start: int = 0
    stop: int = 0  # 0: all columns
    biased: bool = True  # whether f has a bias here

    @property
    def key(self) -> str:
        """Its name in files: unique, stable."""
        cut = f"[{self.start}:{self.stop}]" if self.stop else ""
        return (f"{self.read}->" if self.read else "") + self.name + cut

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop or None)

    def module(self, f: nn.Module) -> nn.Module:
        return f.get_submodule(self.name)

    def weight(self, f: nn.Module, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor | None, Tensor | None]:
        """W [d_out, d_in] and b [d_out] of the site, in one orientation, cut to its columns; None where there is none.

        ``state``: take them from this state dict of f instead.
        """
        module, names = self.module(f), ("weight", "bias")
        if state is None:
            W, b = (getattr(module, n, None) for n in names)
        else:
            W, b = (state.get(f"{self.name}.{n}".lstrip(".")) for n in names)
        if self.read or self.kind == "module" or W is None:
            return None, None
        W = W.mT if self.kind == "transposed" else W
        return (W[self.columns] if self.kind != "embedding" else W), (None if b is None else b[self.columns])

    def put(self, state: dict[str, Tensor], dW: Tensor | None, db: Tensor | None) -> None:
        """Adds dW, db (oriented as in :meth:`weight`) to a state dict's tensors at this site, in place of the old entries."""
        for name, d in (("weight", dW), ("bias", db)):
            if d is None:
                continue
            key = f"{self.name}.{name}".lstrip(".")
            if key not in state:
                raise InputError(f"{self.key} has no {name}, so this delta's {name} cannot be folded into f; keep it as a delta")
            new = (old := state[key]).clone()
            view = new.mT if self.kind == "transposed" and new.ndim == 2 else new
            part = view if self.kind == "embedding" else view[self.columns]
            if part.shape != d.shape or (self.read and name == "weight"):
                raise InputError(f"at {self.key} the delta is no change of f's own {name}; keep it as a delta")
            part.copy_((part.double() + d.double()).to(old.dtype))
            state[key] = new


def blocks(f: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and list of f's blocks: its longest ModuleList of equal modules that is not inside another (experts are)."""
    lists = [(n, m) for n, m in f.named_modules() if isinstance(m, nn.ModuleList) and len({type(c) for c in m}) == 1]
    outer = [(n, m) for n, m in lists if not any(n.startswith(o + ".") and len(c) > 1 for o, c in lists)]
    return max(outer, key=lambda nm: len(nm[1]), default=("", nn.ModuleList()))


def find(f: nn.Module, at: str | Iterable[str]) -> list[Site]:
    """All sites of f that ``at`` names, in the order of f. InputError lists the nearest names when there is none."""
    if not isinstance(at, str):
        return list(dict.fromkeys(s for part in at for s in find(f, part)))
    pattern, _, cut = at.partition("[")
    prefix, stack = blocks(f)
    read, arrow, write = pattern.partition("->")
    names = [n for n, _ in f.named_modules() if n]
    if arrow:
        reads, writes = matching(names, read, prefix), matching(names, write, prefix)
        if len(reads) != len(writes):
            raise InputError(f"{at!r} reads at {len(reads)} modules and writes at {len(writes)}; give each one its partner")
        sites = [region(f, r, w, prefix, len(stack)) for r, w in zip(reads, writes, strict=True)]
    else:
        role = pattern if pattern in (*ROLES, *WHOLE) else ""
        sites = [site(f, n, role, prefix, len(stack)) for n in matching(names, pattern, prefix)]
    if cut and sites and not (sites := [s for s in sites if s.depth in range(len(stack))[_slice(cut, at)]]):
        some = f"it has {len(stack)} blocks, counted from 0; use at: {pattern}[-1:] for the last one, {pattern} for all"
        raise InputError(f"no site of {type(f).__name__} matches {at!r}: {some}")
    if not sites:
        roles = [r for r in (*ROLES, *WHOLE) if matching(names, r, prefix)]
        hint = nearest(pattern, roles if pattern in ROLES else [*roles, *names])
        raise InputError(f"no site of {type(f).__name__} matches {at!r}{hint}")
    return sites


def matching(names: list[str], pattern: str, prefix: str) -> list[str]:
    if pattern == "block":
        return [n for n in names if prefix and re.fullmatch(re.escape(prefix) + r"\.\d+", n)]
    if pattern == "output":
        return [""]
    if pattern == "attention":  # the modules that hold the projections
        return [n.rpartition(".")[0] for n in matching(names, "attention.query", prefix)]
    if pattern in ROLES:
        found = [n for n in names if re.search(rf"(^|\.)({ROLES[pattern]})$", n)]
        return found[:1] if pattern == "embedding" else found
    return fnmatch.filter(names, pattern)


def site(f: nn.Module, name: str, role: str, prefix: str, n_blocks: int) -> Site:
    module, d = f.get_submodule(name), width(f)
    W, biased = getattr(module, "weight", None), getattr(module, "bias", None) is not None
    depth = depth_of(name, prefix, n_blocks, f)
    if isinstance(module, nn.Linear):
        return Site(name, role, depth, "linear", module.in_features, module.out_features, biased=biased)
    if type(module).__name__ == "Conv1D" and W is not None:  # transformers' linear with weight [d_in, d_out]
        d_in, d_out = W.shape
        if name.endswith("c_attn") and role in PARTS:
            third = d_out // 3
            cut = (PARTS[role] * third, (PARTS[role] + 1) * third)
            return Site(name, role, depth, "transposed", d_in, third, "", *cut, biased)
        return Site(name, role, depth, "transposed", d_in, d_out, biased=biased)
    if isinstance(module, nn.Embedding):
        return Site(name, role, depth, "embedding", module.num_embeddings, module.embedding_dim, biased=False)
    if W is not None and W.ndim == 1:
        return Site(name, role, depth, "norm", len(W), len(W), biased=biased)
    if role == "attention":  # d_out: of a key, over all heads that have keys of their own
        key = next(n for n in matching([n for n, _ in f.named_modules()], "attention.key", prefix) if n.startswith(name + "."))
        return Site(name, role, depth, "module", d, site(f, key, "attention.key", prefix, n_blocks).d_out, biased=False)
    return Site(name, role, depth, "module", d, d, biased=False)


def region(f: nn.Module, read: str, write: str, prefix: str, n_blocks: int) -> Site:
    """x where ``read`` reads, y where ``write`` writes: for example one adapter around a whole sublayer."""
    a, b = site(f, read, "", prefix, n_blocks), site(f, write, "", prefix, n_blocks)
    if a.kind == "embedding":
        raise InputError(f"a region reads hidden states, and {read} reads numbers of tokens: begin it at a module behind")
    return Site(write, "region", a.depth, "module", a.d_in, b.d_out, read=read)


def depth_of(name: str, prefix: str, n_blocks: int, f: nn.Module) -> int:
    inside = re.match(re.escape(prefix) + r"\.(\d+)(\.|$)", name) if prefix else None
    if inside:
        return int(inside[1])
    order = [n for n, _ in f.named_modules()]
    return -1 if prefix and name and order.index(name) < order.index(prefix) else n_blocks


def width(f: nn.Module) -> int:
    """The hidden size of f, from its config or, for any module, from its first linear layer's output; 0 if unknown."""
    said = (getattr(getattr(f, "config", None), key, None) for key in ("hidden_size", "n_embd", "dim", "d_model"))
    found = next((n for n in said if isinstance(n, int)), 0)
    return found or next((m.out_features for m in f.modules() if isinstance(m, nn.Linear)), 0)


def clone(f: nn.Module) -> nn.Module:
    """The same modules anew around the same tensors: hooks of one clone are unseen by the others, no weight is copied."""
    share: Mapping[int, object] = {id(t): t for t in (*f.parameters(), *f.buffers())}
    config = getattr(f, "config", None)
    return copy.deepcopy(f, {**share, id(config): config})


def tail(f: nn.Module, k: int) -> nn.Module:
    """f from block k on: ``tail.features`` [b, l, d] replaces what blocks 0..k-1 would have handed to block k.

    f's own forward still makes masks and positions (its embedding runs on the ids that it is given and is overwritten).
    """
    short = clone(f)
    _, stack = blocks(short)
    if not 0 <= k <= len(stack):
        raise InputError(f"f has {len(stack)} blocks, got tail({k})")
    if k and "position_bias" in signature(stack[0].forward).parameters:  # T5's first block makes it for all the others
        raise InputError(f"the blocks of {type(f).__name__} hand on more than hidden states: run all of f, without a tail")
    vars(short)["features"] = None

    def skip(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        found: Tensor | None = vars(short)["features"]
        return hidden_states if found is None else found

    for block in list(stack)[:k]:
        block.forward = skip
    return short


def capture(f: nn.Module, k: int, into: list[Tensor]) -> torch.utils.hooks.RemovableHandle:
    """Appends what block k receives [b, l, d] to ``into`` at each forward of f; for k = number of blocks, what the last gives."""
    _, stack = blocks(f)
    if k == len(stack):
        return stack[-1].register_forward_hook(lambda m, a, y: into.append(y if isinstance(y, Tensor) else y[0]))
    return stack[k].register_forward_pre_hook(lambda m, a, kw: into.append(a[0] if a else kw["hidden_states"]), with_kwargs=True)


def _slice(text: str, at: str) -> slice:
    parts = text.rstrip("]").split(":")
    try:
        numbers = [int(p) if p else None for p in parts]
    except ValueError:
        raise InputError(f"blocks are cut as in Python, for example attention.query[-2:], got {at!r}") from None
    if len(numbers) == 1 and numbers[0] is not None:
        return slice(numbers[0], numbers[0] + 1 or None)
    return slice(*numbers)
