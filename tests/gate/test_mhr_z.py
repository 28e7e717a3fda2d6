import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.names import make
from anabranch.core.route import Route


def test_it_answers_as_mhr_and_costs_only_scores():
    f, x, z = nn.Sequential(nn.Linear(6, 6)), torch.randn(2, 3, 6), torch.randn(3, 4)
    out = {}
    for name in ("mhr", "mhr_z"):
        made = bank(f, {"lora": {"rank": 2}}, {name: {"heads": 3}}, at="0", slots=4, routes=4, spread=0.5)
        made.add_gate({"0": {"z": z}})
        out[name] = Adapted(f, [made])({"input": x}, Route.to([[1, 2, 3, 4]] * 2, who=torch.tensor([1, 1])))
        assert made.tables["gate"].n == 12
    close(out["mhr"], out["mhr_z"], 0)
    assert make("gate", "mhr_z").library and not make("gate", "mhr").library
