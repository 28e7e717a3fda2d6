"""STG-MTL: tasks grouped by their data maps (Sherif et al. 2023, arXiv:2307.03374).

    map_t = (mean, standard deviation) over the passes so far of each row's true-label probability, after each pass, in one vector
    centres = k-means of the maps;   u_tc = 1 / sum_k (|map_t - centre_c| / |map_t - centre_k|)^(2 / (m - 1))
    one shared slot for each cluster c, trained on sum_t u_tc L_t; a task is served by its top cluster

One joint run, then one for each cluster, however many tasks. Tasks with other rows than each other are compared by the
sorted values of their maps. ``clusters``: how many. ``fuzziness``: m above 1, nearer 1 is harder. ``seed``: of k-means.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt
from sklearn.cluster import KMeans
from torch import Tensor

from anabranch.balance._recipe import Run, Train
from anabranch.errors import InputError
from anabranch.types import Count

rows = ("stg-mtl",)
needs = frozenset({"truth"})
LEAST = 0.01  # membership below which a task is left out of a cluster's run


def stg_mtl(
    train: Train, tasks: Sequence[str], *, clusters: Count = 3, fuzziness: Annotated[float, Gt(1)] = 1.07, seed: int = 0
) -> dict[str, Run]:
    if len(tasks) < max(2, clusters):
        raise InputError(f"stg_mtl needs as many tasks as clusters, and two or more; got {len(tasks)} for {clusters} clusters")
    joint = train(dict.fromkeys(tasks, 1.0))
    u = membership(maps([joint.truth[t] for t in tasks]), clusters, fuzziness, seed)
    top = u.argmax(1).tolist()
    shares = [[w if w >= LEAST else 0.0 for w in column] for column in u.mT.tolist()]
    runs = {c: train(dict(zip(tasks, shares[c], strict=True))) for c in sorted(set(top))}
    return {task: runs[c] for task, c in zip(tasks, top, strict=True)}


def maps(truth: Sequence[Tensor]) -> Tensor:
    """truth of each task [passes, rows], the passes alike -> [t, passes * 2 * rows]; of unlike rows, the sorted values."""
    sofar = [[p[: e + 1] for e in range(len(p))] for p in truth]
    found = [torch.stack([torch.stack([p.mean(0), p.std(0, correction=0)]) for p in passes]) for passes in sofar]
    least = min(m.shape[-1] for m in found)
    if any(m.shape[-1] != least for m in found):
        found = [m.quantile(torch.linspace(0, 1, least), dim=-1).movedim(0, -1) for m in found]
    return torch.stack([m.flatten() for m in found])


def membership(x: Tensor, clusters: int, fuzziness: float, seed: int) -> Tensor:
    """x [t, n] -> [t, clusters], rows sum to 1; a task on a centre belongs to it alone."""
    centres = torch.from_numpy(KMeans(clusters, n_init=10, random_state=seed).fit(x.double().numpy()).cluster_centers_)
    far = torch.cdist(x.double(), centres).clamp(min=1e-12)
    return torch.softmax(-2 / (fuzziness - 1) * far.log(), 1)  # the formula above, which would overflow as it stands
