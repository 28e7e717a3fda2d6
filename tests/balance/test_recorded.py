"""Equality with TorchJD and official code on the matrices of recorded.json (made by record.py), step by step."""

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import torch
from balance.record import TORCHJD
from torch import Tensor

from anabranch.balance._common import inner
from anabranch.balance._torchjd import aggregators
from anabranch.core.balance import Point

CASES = json.loads((Path(__file__).parent / "recorded.json").read_text(encoding="utf-8"))
EXTRAS = {"CAGrad": "cvxpy", "NashMTL": "ecos", "UPGrad": "quadprog", "DualProj": "quadprog"}
OURS = {"db_mtl": {"power": 0.5}, "famo": {}, "sam_gs": {}, "gcond": {"steps": 2}}
NAMED = {kind: next(n for n in aggregators() if n.replace("_", "") == kind.lower()) for kind in TORCHJD}


def points(case: str) -> list[Point]:
    steps = zip(*(torch.tensor(CASES[case][n]) for n in ("grads", "losses")), strict=True)
    return [
        Point(torch.zeros(g.shape[1]), lambda _, losses=losses: losses, lambda _, g=g: g, [f"task {i}" for i in range(len(g))])
        for g, losses in steps
    ]


def run(spec: object, case: str) -> list[Tensor]:
    balancer, state, out = inner(spec), None, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the solvers
        for at in points(case):
            direction, state = balancer(state, at)
            out += [] if direction is None else [direction]
    return out


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TORCHJD)
def test_it_is_torchjd(name: str, case: str) -> None:
    if name in EXTRAS and importlib.util.find_spec(EXTRAS[name]) is None:
        pytest.skip(f"{EXTRAS[name]} is not installed")
    found = run({NAMED[name]: TORCHJD[name]}, case)
    near = 1e-2 if name == "NashMTL" else 1e-4  # an iterative solver, started from what JSON keeps of fp32
    torch.testing.assert_close(torch.stack(found), torch.tensor(CASES[case]["answers"][name]), rtol=near, atol=near)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OURS)
def test_it_is_the_official_code(name: str, case: str) -> None:
    found, official = torch.stack(run({name: OURS[name]}, case)), torch.tensor(CASES[case]["answers"][name])
    torch.testing.assert_close(found, official, rtol=2e-5, atol=2e-5 * float(official.abs().max()))
