"""``x a b`` of many runs of rows, each with its own factors, as one node of the graph: a loop of products without copies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Runs(torch.autograd.Function):
    """x [n, d_in], ends of the runs, factors a [d_in, r] of each run, then b [r, d_out] of each -> [n, d_out].

    A run's bits, and those of its gradients, depend on its own rows and factors alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Sequence[int], *factors: Tensor) -> Tensor:
        runs = list(zip((0, *ends), ends, factors, factors[len(ends) :]))  # noqa: B905
        h, out = x.new_empty(len(x), factors[0].shape[1]), x.new_empty(len(x), factors[-1].shape[1])
        for start, stop, a, b in runs:
            torch.mm(torch.mm(x[start:stop], a, out=h[start:stop]), b, out=out[start:stop])
        ctx.save_for_backward(x, h, *factors)
        ctx.ends = ends
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x, h, *factors), (g,), ends = ctx.saved_tensors, grads, ctx.ends
        g, gh, gx = g.contiguous(), torch.empty_like(h), torch.empty_like(x) if ctx.needs_input_grad[0] else None
        da, db = [], []
        for start, stop, a, b in zip((0, *ends), ends, factors, factors[len(ends) :]):  # noqa: B905
            torch.mm(g[start:stop], b.mT, out=gh[start:stop])
            if gx is not None:
                torch.mm(gh[start:stop], a.mT, out=gx[start:stop])
            da.append(x[start:stop].mT @ gh[start:stop])
            db.append(h[start:stop].mT @ g[start:stop])
        return gx, None, *da, *db
