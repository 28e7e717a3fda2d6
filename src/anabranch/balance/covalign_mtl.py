"""SVD task weights for hard parameter sharing (Wu et al. 2020, arXiv:2005.00944).

    theta_t = X_t^T Y_t / n_t [d, outputs];   U = the ``rank`` leading left singular vectors of [theta_1 ... theta_T]
    w_t = |U^T theta_t|, scaled to mean 1;    one shared slot trained on sum_t w_t L_t

X_t: f's features; Y_t: targets, centred and of mean squared length 1, so that classes and numbers compare. Tasks off the common
subspace, such as those of noisy labels, count less. The paper's other half, a linear map of its own for each task between the
embedding and the shared module, is the delta ``alignment``. ``rank``: of the common subspace.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from anabranch.balance._recipe import Run, Train
from anabranch.errors import InputError
from anabranch.types import Count

rows = ("covalign-mtl",)


def covalign_mtl(train: Train, tasks: Sequence[str], *, rank: Count = 8) -> dict[str, Run]:
    if len(tasks) < 2:
        raise InputError("covalign_mtl needs two tasks or more: it weighs them by what they have in common")
    found = weights([theta(*train.features(task)) for task in tasks], rank)
    return dict.fromkeys(tasks, train(dict(zip(tasks, found.tolist(), strict=True))))


def theta(x: Tensor, y: Tensor) -> Tensor:
    """x [n, d], y [n, outputs] -> [d, outputs]; 0 for targets that are all alike."""
    y = (y - y.mean(0)).to(x.dtype)
    return x.mT @ y / len(x) / y.square().sum(1).mean().sqrt().clamp(min=1e-12)


def weights(thetas: Sequence[Tensor], rank: int) -> Tensor:
    """[d, outputs] of each task -> [t], of mean 1."""
    u = torch.linalg.svd(torch.cat(list(thetas), 1), full_matrices=False).U[:, :rank]
    size = torch.stack([(u.mT @ t).norm() for t in thetas])
    return size / size.mean().clamp(min=1e-30)


def similarity(a: Tensor, b: Tensor, rank: int) -> Tensor:
    """Of the covariances of inputs a [n, d], b [m, d]: the cosine of their roots' top subspaces, in [0, 1].

    |(Ua Da^1/2)^T (Ub Db^1/2)| / (|Ua Da^1/2| |Ub Db^1/2|) with U D U^T of ``rank``. Low: sharing may hurt.
    """
    roots = []
    for x in (a, b):
        _, s, vh = torch.linalg.svd(x, full_matrices=False)
        roots.append(vh[:rank].mT * s[:rank])
    return (roots[0].mT @ roots[1]).norm() / (roots[0] @ roots[0].mT).norm().sqrt() / (roots[1] @ roots[1].mT).norm().sqrt()
