import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import find


def test_it_starts_as_the_mean_of_the_deltas_and_is_a_weighted_sum():
    f, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 3, 4)
    gate = make("gate", "fixed")
    assert gate.own(find(f, "0")[0], 3, torch.Generator())["c"].tolist() == [torch.tensor(1 / 3).item()] * 3
    made = bank(f, "offset", gate, at="0", routes=2)
    made.add_gate(made.gates(torch.Generator()))
    made.add_gate({"0": {"c": torch.tensor([2.0, -1.0])}})
    d = [made.take(i)["0"]["d"] for i in (1, 2)]
    got = Adapted(f, [made])({"input": x}, Route.to([[1, 2], [1, 2]], who=torch.tensor([1, 2])))
    close(got[0], f(x)[0] + (d[0] + d[1]) / 2)
    close(got[1], f(x)[1] + 2 * d[0] - d[1])
    assert not gate.trained
