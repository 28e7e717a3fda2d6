"""What methods of several training runs ask of the engine; of ``truth`` only where their file says needs = {"truth"}."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Run(NamedTuple):
    """One shared slot, trained."""

    slot: Any  # as the engine keeps it
    scores: dict[str, float]  # of every task on its validation rows, higher is better; also of tasks that had weight 0
    truth: dict[str, Tensor]  # [passes, rows] likelihood of each training row's label after each pass: exp(-its loss)


class Train(Protocol):
    def __call__(self, weights: Mapping[str, float]) -> Run:
        """Trains one shared slot on ``sum_t weights[t] L_t``; a task of weight 0 is left out. Memoised by its weights."""

    def features(self, task: str) -> tuple[Tensor, Tensor]:
        """f's features x [rows, d] of a task's training rows, and their targets y [rows, outputs] (classes one-hot)."""
