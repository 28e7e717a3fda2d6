import torch

from anabranch.core.delta import At
from anabranch.core.names import make

AT = At(torch.ones(3, 2), torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bool))


def test_every_slot_that_is_there_counts_once():
    gate = make("gate", "by_task")
    assert gate.plain and gate.own(None, 3, torch.Generator()) == {} == gate.key(None, {}, torch.Generator())
    w = gate.weigh({}, {}, AT, torch.tensor([True, False, True]))
    assert w.tolist() == [1, 0, 1] and w.dtype is torch.bfloat16
    out = torch.arange(24.0).view(3, 2, 4)
    assert torch.equal(gate.combine(w, out), out[0] + out[2])
