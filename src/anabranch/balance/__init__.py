"""Family balance: one method, one file; see docs/balance.md. TorchJD's aggregators are methods too, by their names.

Three forms, told apart by the first parameter's name. ``rows``: a combine, (rows [t, n]) -> [n], which
:func:`anabranch.core.balance.lift` makes a balancer. ``state``: a balancer, (state, Point) -> (direction [n] or None, state).
``train``: a recipe of several training runs, (train, tasks) -> {task: Run}.

Where all tasks of a fit have the same training texts, each text goes through f once for all of them, and what is balanced are
the tasks' gradients at its features, of which one goes back through f: exact for weighted sums, an upper bound for others (Sener
and Koltun 2018, arXiv:1810.04650). Not for methods with terms, and not for those that look at other numbers than those that are
trained or keep directions from step to step, which is seen on toy losses.
"""

from collections.abc import Callable
from typing import Any

from anabranch.core.names import family

family(__name__)


def beyond() -> dict[str, Callable[[], Any]]:
    """The methods that are no files here: name -> what loads it."""
    from anabranch.balance._torchjd import aggregators

    return aggregators()
