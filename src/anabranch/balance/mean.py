"""The mean of the tasks' gradients: training on the mean loss (linear scalarisation; no paper).

    g = (1/t) sum_t g_t

t counts the tasks.
"""

from torch import Tensor

promises = frozenset({"identity", "linear", "order", "scale"})


def mean(rows: Tensor) -> Tensor:
    """rows [t, n] -> [n]."""
    return rows.mean(0)
