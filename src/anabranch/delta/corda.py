"""CorDA: low-rank factors that start from the weight's directions in the context of data (Yang et al. 2024, arXiv:2406.05223).

    dW = (a b - a0 b0)^T,  a [d_in, r], b [r, d_out];  W C = U S V^T,  a0 = C^-1 V_r sqrt(S_r), b0 = sqrt(S_r) U_r^T

C [d_in, d_in] = E[x x^T] of the layer's input over real tokens, scaled to a mean diagonal of 1, plus ``ridge`` times the
identity. W and C come from ``seen``; a, b start at a0, b0, which are stored and never trained (see pissa), so a fresh slot
changes nothing.
``rank``: r. ``mode``: ipm (instruction-previewed: the r largest directions, with C of the task to learn) or kpm
(knowledge-preserved: the r smallest, with C of the data that must not be forgotten). ``of``: the task of the same fit whose
training texts C is of, in kpm one whose knowledge must stay; None: the task's own. ``ridge``: what makes C invertible.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from anabranch.core.delta import Params
from anabranch.delta.pissa import Pissa
from anabranch.types import Positive

rows = ("corda",)


@dataclass(frozen=True)
class Corda(Pissa):
    mode: Literal["ipm", "kpm"] = "ipm"
    of: str | None = None
    ridge: Positive = 0.01
    needs: ClassVar[frozenset[str]] = frozenset({"W", "cov"})

    def start(self, seen: Params) -> tuple[Tensor, Tensor]:
        C = seen["cov"]
        C = C / C.diagonal().mean().clamp(min=1e-30) + self.ridge * torch.eye(len(C), dtype=C.dtype, device=C.device)
        u, s, vh = torch.linalg.svd(seen["W"] @ C, full_matrices=False)
        r = slice(self.rank) if self.mode == "ipm" else slice(len(s) - self.rank, None)
        root = s[r].sqrt()
        return torch.linalg.solve(C, vh[r].mT) * root, (u[:, r] * root).mT
