"""Makes recorded.json: small gradients and losses of four steps, and what public implementations answer to them.

    python record.py --libmtl DIR --samgs DIR --gcond DIR --samo DIR     (clones of median-research-group/LibMTL,
    ThomBors/samgs, AlevLab-dev/GCond, OptMN-Lab/SAMO; needs torchjd[full])

Aggregators of TorchJD run through all steps, so that what they remember is seen; their random numbers are seeded by the step.
"""

import argparse
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor

STEPS, SHAPES = 4, {"three": (3, 6), "five": (5, 9)}
TORCHJD = {
    "AlignedMTL": {}, "CAGrad": {"c": 0.5}, "ConFIG": {}, "DualProj": {}, "ExcessMTL": {}, "FairGrad": {"alpha": 1.0},
    "GradDrop": {}, "GradVac": {}, "IMTLG": {}, "Krum": {"n_byzantine": 0}, "MGDA": {}, "NashMTL": {}, "PCD": {}, "PCGrad": {},
    "Random": {}, "Sum": {}, "TrimmedMean": {"trim_number": 1}, "UPGrad": {},
}  # fmt: skip

BLANKS = (
    "utils", "ipdb", "methods", "methods.min_norm_solvers", "LibMTL", "LibMTL.weighting", "LibMTL.weighting.abstract_weighting",
)  # fmt: skip


def torchjd(name: str, steps: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    import torchjd.aggregation as jd

    settings = TORCHJD[name] | ({"n_tasks": len(steps[0][0])} if name == "NashMTL" else {})
    aggregator, out = getattr(jd, name)(**settings), []
    for i, (grads, _) in enumerate(steps):
        torch.manual_seed(i)
        out.append(aggregator(grads))
    return out


def loaded(path: Path, name: str) -> Any:
    """A file of a clone as a module; what it imports for its other methods is not needed."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    blanks = {n: MagicMock(AbsWeighting=torch.nn.Module) for n in BLANKS}
    with patch.dict(sys.modules, blanks):
        spec.loader.exec_module(module)
    return module


def db_mtl(folder: Path, steps: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    kind, out = loaded(folder / "LibMTL" / "weighting" / "DB_MTL.py", "db_mtl").DB_MTL, []
    method = kind.__new__(kind)
    torch.nn.Module.__init__(method)
    method.task_num, method.device, method.rep_grad = len(steps[0][0]), "cpu", False
    method._compute_grad_dim = lambda: setattr(method, "grad_dim", steps[0][0].shape[1])
    method._reset_grad = out.append
    method.init_param()
    for grads, losses in steps:
        method._compute_grad = lambda logs, mode, g=grads: g / logs.exp()[:, None]
        method.backward(losses, DB_beta=0.9, DB_beta_sigma=0.5)
    return out


def sam_gs(folder: Path, steps: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    method = loaded(folder / "methods" / "weight_methods.py", "samgs").SAMGS(len(steps[0][0]), torch.device("cpu"), gamma=0.7)
    return [method.balance_magnitude(grads.T)[0] for grads, _ in steps]


def gcond(folder: Path, steps: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Two micro-batches for each direction."""
    t, n = steps[0][0].shape
    model, names = torch.nn.Linear(n, 1, bias=False), [f"task {i}" for i in range(t)]
    method = loaded(folder / "grad_conductor.py", "gcond").GradientConductor(
        model, dict.fromkeys(names), dict.fromkeys(names, 1.0), t, freeze_bn=False
    )
    zero = lambda: {k: [torch.zeros(1, n)] for k in names}  # noqa: E731  # in fp32, where the original keeps bf16
    method.accumulators, method.prev_accumulators, method.momentum, method.final_update = zero(), zero(), zero()[names[0]], [None]
    out = []
    for i in range(0, len(steps), 2):
        mean = (steps[i][0] + steps[i + 1][0]) / 2
        method.accumulators = {k: [mean[j : j + 1].clone()] for j, k in enumerate(names)}
        method._momentum_update(method._project()[0])
        out.append(method.final_update[0][0].clone())
        method.accumulators, method.prev_accumulators = method.prev_accumulators, method.accumulators
    return out


def famo(folder: Path, steps: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The losses after a step are those of the next one's batch."""
    method = loaded(folder / "methods" / "weight_methods.py", "famo").FAMO(len(steps[0][0]), torch.device("cpu"), gamma=1e-3)
    out = []
    for i, (grads, losses) in enumerate(steps):
        if i:
            method.update(losses)
        leaf = losses.clone().requires_grad_()
        method.get_weighted_loss(leaf)[0].backward()
        method.prev_loss = losses
        out.append(leaf.grad @ grads)
    return out


def main() -> None:
    ask = argparse.ArgumentParser()
    peers: dict[str, tuple[str, Callable[..., list[Tensor]]]] = {
        "db_mtl": ("libmtl", db_mtl), "sam_gs": ("samgs", sam_gs), "gcond": ("gcond", gcond), "famo": ("samo", famo),
    }  # fmt: skip
    for folder, _ in peers.values():
        ask.add_argument(f"--{folder}", type=Path, required=True)
    given = vars(ask.parse_args())
    warnings.simplefilter("ignore")
    rng, out = torch.Generator().manual_seed(0), {}
    for case, (t, n) in SHAPES.items():
        sizes = torch.logspace(-0.5, 0.5, t)[:, None]
        steps = [(sizes * torch.randn(t, n, generator=rng), 0.2 + torch.rand(t, generator=rng)) for _ in range(STEPS)]
        answers = {name: torchjd(name, steps) for name in TORCHJD}
        answers |= {name: answer(given[folder], steps) for name, (folder, answer) in peers.items()}
        out[case] = {
            "grads": [g.tolist() for g, _ in steps], "losses": [losses.tolist() for _, losses in steps],
            "answers": {name: [a.tolist() for a in found] for name, found in answers.items()},
        }  # fmt: skip
    rounded = json.loads(json.dumps(out), parse_float=lambda x: float(f"{float(x):.9g}"))
    (Path(__file__).parent / "recorded.json").write_text(json.dumps(rounded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
