"""Enforced routing: one expert a domain, chosen by a label of the text and never learned (Hallee et al. 2024,
arXiv:2401.15713).

    dy = Delta_e,  e = the domain of the row's task

With the delta dense at mlp.in and mlp.out the experts are the copies of f's own MLP that the paper trains, at the cost of
one; lora there makes them small. What the paper writes as a token in front of the text is the task's name here. All tasks
of a domain train its expert together.

``domains``: {domain: [task, ...]}; a task that no domain names is a domain of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.errors import InputError, nearest

rows = ("moe-enforced-routing",)


@dataclass(frozen=True)
class Enforced(Gate):
    domains: Mapping[str, Sequence[str]] | None = None
    plain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.domains, Mapping | None) or any(
            isinstance(tasks, str) or not isinstance(tasks, Sequence) for tasks in (self.domains or {}).values()
        ):
            raise InputError(f"gate enforced: domains is {{domain: [task, ...]}}, got {self.domains!r:.80}")

    def weigh(self, own: Params, keys: Params, at: At, on: Tensor) -> Tensor:
        return on.to(at.y.dtype)

    def groups(self, tasks: Sequence[str]) -> list[list[str]]:
        """The domains in their order, each with its tasks, then tasks on their own."""
        of: dict[str, str] = {}
        for domain, members in (self.domains or {}).items():
            for task in members:
                if task in of or task not in tasks:
                    why = "is in another domain too" if task in of else f"is no task of the plan{nearest(task, tasks)}"
                    raise InputError(f"gate enforced: {task!r} of domain {domain} {why}")
                of[task] = domain
        found = [[t for t in tasks if of.get(t) == domain] for domain in self.domains or {}]
        return [group for group in found if group] + [[t] for t in tasks if t not in of]
