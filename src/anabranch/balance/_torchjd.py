"""TorchJD's aggregators as balancers, by their names: ``upgrad``, ``aligned_mtl``, ``imtl_g`` (and ``imtlg``); ``crmogm``.

Settings are the constructor's arguments; ``n_tasks`` comes from the step. What an aggregator remembers is kept in the state, for
each set of tasks that meet in a step apart. Its random numbers come from the number of steps before.
Weightings without an aggregator: ``crmogm`` smooths the weights of another; ``modo`` and ``sdmgrad``, which take several
batches a step, are files of this folder.
"""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
import torchjd.aggregation as jd
from torch import Tensor
from torchjd import Stateful

from anabranch.balance._common import State, gradients
from anabranch.core.balance import Point
from anabranch.core.names import make
from anabranch.errors import InputError, WorkError, nearest
from anabranch.types import Balance

FILLED = "n_tasks"
TRIAL = {float: 1.0, int: 1, Tensor: torch.ones(1)}  # for settings without a default, to see what is installed


def aggregators() -> dict[str, Callable[[], Any]]:
    """Name -> what makes the balancer; the name is the class's in snake case, or its file's."""
    named = classes() | {"crmogm": CRMOGM, "cr_mogm": CRMOGM}
    return {name: partial(balancer, name, kind) for name, kind in named.items()}


def classes() -> dict[str, type[Any]]:
    kinds = [k for k in map(vars(jd).get, jd.__all__) if inspect.isclass(k) and issubclass(k, jd.Aggregator)]
    final = [k for k in kinds if not any(issubclass(other, k) for other in kinds if other is not k)]
    named = {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", k.__name__).lower(): k for k in final}
    return named | {k.__module__.rpartition("._")[2]: k for k in final}


class CRMOGM(jd.WeightedAggregator):
    """CR-MOGM: a moving average of another aggregator's weights (Zhou et al. 2022, NeurIPS).

    w_k = alpha w_k-1 + (1 - alpha) w of this step, from ``initial_weights`` or else the first step's. ``weighting``: the other,
    one of TorchJD's whose direction is a weighted sum of the gradients, by its name.
    """

    def __init__(
        self, weighting: Balance = "mgda", alpha: float = 0.9, initial_weights: Tensor | None = None, n_tasks: int = 1
    ) -> None:
        inner, known = make("balance", weighting), classes()
        name = getattr(inner, "__name__", "").replace("-", "_")
        if name not in known or not issubclass(known[name], jd.WeightedAggregator):
            fit = sorted(n for n, k in known.items() if issubclass(k, jd.WeightedAggregator))
            raise InputError(
                f"balance crmogm smooths the weights of one of {', '.join(fit)}; got {weighting!r}{nearest(name, fit)}"
            )
        other = made(name, known[name], n_tasks, inner.settings)
        super().__init__(jd.CRMOGMWeighting(other.weighting, alpha, initial_weights))


def balancer(name: str, kind: type[Any]) -> Callable[..., Any]:
    """(state, point, *, settings) -> (direction, state); InputError where TorchJD needs what is not installed."""
    hints = get_type_hints(kind.__init__, include_extras=True)
    parameters = [p for p in inspect.signature(kind).parameters.values() if p.name != FILLED]
    made(name, kind, 1, {p.name: TRIAL[hints[p.name]] for p in parameters if p.default is p.empty})

    def method(state: State, point: Point, **settings: Any) -> tuple[Tensor, dict[str, Any]]:
        rows, calls = gradients(point), int((state or {}).get("calls", 0))
        aggregator = made(name, kind, len(rows), settings)
        with torch.random.fork_rng(devices=[]):
            try:
                place = "+".join(point.names)
                held = {k[len(place) + 1 :]: v for k, v in (state or {}).items() if k.startswith(f"{place}:")}
                if held:
                    aggregator(rows)  # makes its buffers, whose contents are then those of the state
                    restore(aggregator, held)
                torch.manual_seed(calls)
                direction = aggregator(rows)
            except ValueError as error:
                raise InputError(f"balance {name}: {error}") from None
        if not direction.isfinite().all():
            raise WorkError(f"balance {name} found no finite direction for {', '.join(point.names)}")
        kept = {f"{place}:{k}": v for k, v in memory(aggregator).items()}
        return direction, dict(state or {}) | kept | {"calls": calls + 1}

    front = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("state", "point")]
    method.__name__, method.__doc__ = name, kind.__doc__
    method.__signature__ = inspect.Signature([*front, *(p.replace(kind=p.KEYWORD_ONLY) for p in parameters)])  # type: ignore[attr-defined]
    method.__annotations__ = {p.name: hints[p.name] for p in parameters if p.name in hints}
    return method


def made(name: str, kind: type[Any], tasks: int, settings: dict[str, Any]) -> Any:
    filled = {FILLED: tasks} if FILLED in inspect.signature(kind).parameters else {}
    lists = {n: listed(f"balance {name}: {n}", v) if isinstance(v, list | tuple) else v for n, v in settings.items()}
    hints = get_type_hints(kind.__init__)
    for n, v in lists.items():
        kinds = get_args(hints[n]) or (hints[n],)
        if Tensor in kinds and not isinstance(v, (*kinds, *[int] * (float in kinds))):
            raise InputError(f"balance {name}: {n} is a list of numbers such as [0.5, 0.5], got {v!r:.60}")
    try:
        return kind(**filled, **lists)
    except ImportError as error:
        raise InputError(f"balance {name} needs an extra of TorchJD that is not installed: {error}") from None
    except ValueError as error:
        raise InputError(f"balance {name}: {error}") from None


def listed(label: str, values: Any) -> Tensor:
    try:
        return torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError):
        raise InputError(f"{label} is a list of numbers such as [0.5, 0.5], got {values!r:.60}") from None


def memory(aggregator: Any) -> dict[str, Any]:
    """The numbers and tensors that a stateful aggregator holds, by module and attribute; {} for one without a state."""
    stateful = any(isinstance(m, Stateful) for m in aggregator.modules())
    modules = dict(aggregator.named_modules()) if stateful else {}
    held = {f"{path}.{n}": v for path, m in modules.items() for n, v in {**vars(m), **m._buffers}.items()}
    plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in held.items()}
    tensors = {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in plain.items()}
    return {n: v.clone() if isinstance(v, Tensor) else v for n, v in tensors.items() if type(v) in (Tensor, int, float)}


def restore(aggregator: Any, held: dict[str, Any]) -> None:
    modules = dict(aggregator.named_modules())
    for name, value in held.items():
        path, _, attribute = name.rpartition(".")
        now = vars(modules[path]).get(attribute)
        setattr(modules[path], attribute, value.numpy() if isinstance(now, np.ndarray) else value)
