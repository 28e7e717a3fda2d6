import torch
from laws._nasty import bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.gate.mhr_mu import average


def test_the_average_as_gate_and_as_slot():
    """Both are the LoRA of the mean factors; a new task tunes the slot, which is the gate's answer to begin with."""
    f, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(2, 3, 6)
    made = bank(f, {"lora": {"rank": 2, "alpha": 2.0}}, "mhr_mu", at="0", slots=3, spread=0.5)
    a, b = (torch.stack([made.take(k)["0"][n] for k in (1, 2, 3)]).mean(0) for n in "ab")
    close(Adapted(f, [made])({"input": x}, Route.to([[1, 2, 3]] * 2)), f(x) + x @ a @ b)
    single = bank(f, {"lora": {"rank": 2, "alpha": 2.0}}, at="0", slots=0)
    single.add([average(made)])
    close(Adapted(f, [single])({"input": x}, Route.to([1, 1])), f(x) + x @ a @ b)


def test_candidates_that_are_not_there_do_not_count():
    w = make("gate", "mhr_mu").weigh({}, {}, None, torch.tensor([True, False, True, False]))
    assert w.tolist() == [0.5, 0, 0.5, 0]


def test_keys_are_left_out_of_the_average():
    made = bank(nn.Sequential(nn.Linear(6, 4)), {"lora": {"rank": 2}}, "phatgoose", at="0", slots=2)
    assert set(average(made)["0"]) == {"a", "b"}
