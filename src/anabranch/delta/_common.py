"""Deltas of which all slots of a bank have a part in common. A bank keeps what is common in ``shared``, one tree for all
sites, and a delta is not told where it runs; so own and shared tensors of a site carry its key: ``<name>@<site key>``."""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from anabranch.core.delta import Params
from anabranch.core.site import Site
from anabranch.delta._site import sits


def shapes(site: Site, method: str) -> dict[str, tuple[int, ...]]:
    """Of the weight W and, where f has one, the bias b, as :meth:`Site.weight` gives them."""
    sits(site, method, "linear", "norm", "table")
    W = {"norm": (site.d_out,), "embedding": (site.d_in, site.d_out)}.get(site.kind, (site.d_out, site.d_in))
    return {"W": W} | ({"b": (site.d_out,)} if site.biased else {})


def size(site: Site, method: str) -> int:
    """Numbers of W and b together."""
    return sum(torch.Size(shape).numel() for shape in shapes(site, method).values())


def named(site: Site, p: Mapping[str, Tensor]) -> Params:
    return {f"{n}@{site.key}": t for n, t in p.items()}


def here(p: Params, own: str) -> Params:
    """The tensors of the site that the own tensor ``own@...`` belongs to, by their plain names."""
    key = next((n.partition("@")[2] for n in p if n.startswith(f"{own}@")), None)
    return {} if key is None else {n.partition("@")[0]: t for n, t in p.items() if n.endswith(f"@{key}")}


def spread(sites: Sequence[Site], rng: Generator, method: str) -> Params:
    """What is common to the slots of a fresh bank, as ``common``: random, at a twentieth of a usual weight's size."""
    return {n: t for s in sites for n, t in named(s, {"common": 0.05 * torch.randn(size(s, method), generator=rng)}).items()}


def split(flat: Tensor, W: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """[n] -> (dW, db): W's numbers first, then b's."""
    assert W is not None
    return flat[: W.numel()].view(W.shape), flat[W.numel() :] if b is not None else None


def joined(p: Mapping[str, Tensor]) -> Tensor:
    """The inverse: W and b, if there is one, as one vector."""
    return torch.cat([p[n].flatten() for n in ("W", "b") if n in p])
