"""A small f, task vectors on it, and a ``Look`` whose losses are quadratic: what merges that learn can be held to by hand."""

from types import SimpleNamespace

import torch
from torch import Generator, Tensor, nn

from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.core.site import find


def body(*widths: int, seed: int = 0) -> nn.Sequential:
    """Linear layers with tanh between: sites "0", "2", ..."""
    torch.manual_seed(seed)
    layers = [m for a, b in zip(widths, widths[1:], strict=False) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def sites(f: nn.Module):
    return find(f, [n for n, m in f.named_modules() if isinstance(m, nn.Linear)])


def trees(f: nn.Module, t: int, size: float = 0.1, seed: int = 1) -> list[dict[str, dict[str, Tensor]]]:
    rng = Generator().manual_seed(seed)
    return [
        {s.key: {n: size * torch.randn(p.shape, generator=rng) for n, p in zip("Wb", s.weight(f), strict=True)} for s in sites(f)}
        for _ in range(t)
    ]


def bank(f: nn.Module, slots, delta="dense") -> Bank:
    made = Bank(make("delta", delta), make("gate", "by_task"), sites(f))
    made.adopt(slots[0], {}, {"": {}})
    made.add(slots)
    return made


def vector(tree) -> Tensor:
    return torch.cat([t.flatten() for p in tree.values() for t in p.values()])


def look(f: nn.Module, targets, own=None, seed: int = 0):
    """losses(tree)[j] = |tree - targets[j]|^2 / 2; entropies are ten times that; features are a linear image of the tree."""

    def losses(tree, j=None) -> Tensor:
        asked = targets if j is None else targets[j : j + 1]
        return torch.stack([0.5 * (vector(tree) - vector(target)).square().sum() for target in asked])

    return SimpleNamespace(
        losses=losses, entropies=lambda tree: 10 * losses(tree), features=None, own=lambda j: (own or targets)[j], f=f,
        sites=sites(f), rng=Generator().manual_seed(seed),
    )  # fmt: skip


def close(a: Tensor, b: Tensor, size: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=size, atol=size)
