"""Family balance: one method, one file; see docs/balance.md. TorchJD's aggregators are methods too, by their names.

Three forms, told apart by the first parameter's name. ``rows``: a combine, (rows [t, n]) -> [n], which
:func:`anabranch.core.balance.lift` makes a balancer. ``state``: a balancer, (state, Point) -> (direction [n] or None, state).
``train``: a recipe of several training runs, (train, tasks) -> {task: Run}.
"""

from collections.abc import Callable
from typing import Any

from anabranch.core.names import family

family(__name__)


def beyond() -> dict[str, Callable[[], Any]]:
    """The methods that are no files here: name -> what loads it."""
    from anabranch.balance._torchjd import aggregators

    return aggregators()
