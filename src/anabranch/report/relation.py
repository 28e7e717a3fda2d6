"""Which tasks help or hurt each other: the relate matrix in an order that puts kin together, its tree, groups and graph."""

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any

import networkx as nx  # type: ignore[import-untyped]
import numpy as np
from scipy.cluster.hierarchy import dendrogram, fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform

from anabranch.report import charts

NOISE = 0.1  # cosines of gradients from 64 rows nearer to 0 than this say nothing
NEAR = 3  # lines of the graph that a task has at least, its strongest


def relation(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> dict[str, Any]:
    """``{"names", "matrix"}`` in clustered order (hundredths as bytes, base64), ``"helps"`` and ``"hurts"`` (strongest pairs),
    ``"groups"`` {task: 0 to 5}, ``"most"`` (the cosine of the strongest colour), and the drawings ``"heat"`` and ``"graph"``. For
    two tasks or more."""
    values = np.nan_to_num(np.asarray(matrix, float)).clip(-1, 1)
    values = (values + values.T) / 2
    far = 1 - values
    np.fill_diagonal(far, 0)
    tree = linkage(squareform(far, checks=False), "average", optimal_ordering=True)
    order = leaves_list(tree)
    drawn = dendrogram(tree, no_plot=True)
    lines = [[(x / 10, y) for x, y in zip(*each, strict=True)] for each in zip(drawn["icoord"], drawn["dcoord"], strict=True)]
    found = fcluster(tree, 1 - NOISE, "distance").tolist()
    kin = [c for c, n in Counter(found).most_common() if n > 1]  # the largest first; a task alone is of no group
    groups = {n: kin.index(c) % 5 if c in kin else 5 for n, c in zip(names, found, strict=True)}
    most = max(NOISE, float(np.abs(values - np.diag(values.diagonal())).max()))
    sorted_names, sorted_values = [names[i] for i in order], values[np.ix_(order, order)]
    shown = (sorted_values - np.diag(sorted_values.diagonal())) / most
    words = [["" if i == j else f"{v:+.2f}" for j, v in enumerate(row)] for i, row in enumerate(sorted_values)]
    pairs = sorted((float(values[i, j]), names[i], names[j]) for i in range(len(names)) for j in range(i))
    edges = strongest(names, values)
    helps = [(a, b, v) for v, a, b in reversed(pairs[-8:]) if v > NOISE]
    hurts = [(a, b, v) for v, a, b in pairs[:8] if v < -NOISE]
    said = "; ".join(f"{a} and {b} {v:+.2f}" for a, b, v in helps[:3])
    label = f"Cosines between {len(names)} tasks, kin together. Strongest: {said}"
    hundredths = (100 * sorted_values).round().astype(np.int8)
    return {
        "names": sorted_names, "matrix": base64.b64encode(hundredths.tobytes()).decode(),
        "helps": helps, "hurts": hurts, "groups": groups, "most": most, 
        "heat": charts.heat(shown.tolist(), sorted_names, sorted_names, label, "related", lines, words),
        "graph": charts.graph(layout(names, edges), edges, groups),
    }  # fmt: skip


def strongest(names: Sequence[str], values: np.ndarray) -> list[tuple[str, str, float]]:
    """Pairs above the noise that are among the strongest of one of their tasks."""
    kept = set()
    for i in range(len(names)):
        others = [j for j in np.argsort(-np.abs(values[i])) if j != i and abs(values[i, j]) > NOISE]
        kept |= {(min(i, int(j)), max(i, int(j))) for j in others[:NEAR]}
    return [(names[i], names[j], float(values[i, j])) for i, j in sorted(kept)]


def layout(names: Sequence[str], edges: Sequence[tuple[str, str, float]]) -> dict[str, tuple[float, float]]:
    """Places in [-1, 1]^2: what helps draws together. The same for the same edges."""
    g = nx.Graph()
    g.add_nodes_from(names)
    g.add_weighted_edges_from((a, b, v) for a, b, v in edges if v > 0)
    places = nx.spring_layout(g, seed=0, k=2.2 / len(names) ** 0.5, iterations=80 if len(names) < 200 else 30, method="force")
    spots = np.array([places[n] for n in names])
    low, span = spots.min(0), np.where(np.ptp(spots, axis=0) > 0, np.ptp(spots, axis=0), 1)
    spots = 2 * (spots - low) / span - 1
    return {n: (float(x), float(y)) for n, (x, y) in zip(names, spots, strict=True)}
