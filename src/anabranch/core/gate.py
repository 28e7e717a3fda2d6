"""How much of each delta a row gets: ``w_t(x, task)``. A gate is written for ONE row and its k candidate slots."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator, Tensor

if TYPE_CHECKING:
    from anabranch.core.delta import At, Delta, Params
    from anabranch.core.site import Site


class Gate(ABC):
    """A frozen dataclass of settings. Its own tensors are one task's, its keys are one slot's; both are stored in the bank."""

    on: ClassVar[Literal["outputs", "params"]] = "outputs"  # "params": blend the slots' parameters before applying
    trained: ClassVar[bool] = True  # whether its own tensors and keys learn with the deltas
    library: ClassVar[bool] = False  # whether its candidates are slots that were trained alone, which stay as they are
    needs: ClassVar[frozenset[str]] = frozenset()  # statistics of x that key reads: {"mean", "cov"}
    plain: ClassVar[bool] = False  # weights are 1 for every candidate, so that weigh need not be called
    top: int | None = None  # how many slots a row or token keeps, weigh leaving the others at zero; None: all

    def own(self, site: "Site", slots: int, rng: Generator) -> "Params":
        """One task's tensors at one site, over its ``slots`` candidates."""
        return {}

    def key(self, site: "Site", p: "Params", rng: Generator, seen: Mapping[str, Tensor] | None = None) -> "Params":
        """One slot's key at one site: read from its parameters p, or learned from this start."""
        return {}

    def learner(self) -> "Gate":
        """The gate under which a slot's key is learned, with that slot as the only candidate."""
        return self

    def groups(self, tasks: Sequence[str]) -> list[list[str]]:
        """Tasks that train their slots together, one group after another: all of them, unless the gate knows better."""
        return [list(tasks)]

    @abstractmethod
    def weigh(self, own: "Params", keys: "Params", at: "At", on: Tensor) -> Tensor:
        """own: the task's tensors; keys [k, ...]; on [k] bool, which candidates exist -> w [k] per row or [l, k] per token."""

    def blend(self, delta: "Delta", own: "Params", w: Tensor) -> "Params":
        """Where ``on`` is "params": own tensors [k, ...] and w (candidates last) -> one slot's tensors."""
        return delta.blend(own, w)

    def combine(self, w: Tensor, out: Tensor) -> Tensor:
        """w [k] or [l, k], out [k, l, d] -> [l, d]."""
        return torch.einsum("k,kld->ld" if w.ndim == 1 else "lk,kld->ld", w.to(out.dtype), out)
