"""One change for all, masked for each: bits and training by the straight-through gradient."""

import torch
from laws._nasty import close, frozen
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.fold import changes
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import find

F = nn.Sequential(nn.Linear(3, 2))


def made(scores, common):
    bank = Bank(make("delta", "masked_common"), make("gate", "by_task"), find(F, "0"))
    slots = [{"0": {"score@0": torch.tensor(s)}} for s in scores]
    bank.adopt(slots[0], {}, {"": {"common@0": torch.tensor(common)}})
    bank.add(slots)
    return bank


SCORES = [[1.0, -1.0, 0.0, 2.0, 3.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
COMMON = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]  # six weights, two biases


def test_by_hand_with_scores_and_with_bits():
    bank = made(SCORES, COMMON)
    for served in (bank, frozen(bank)):
        dW, db = changes(F, served, 1)["0"]
        assert dW.tolist() == [[1, 0, 0], [4, 5, 0]] and db.tolist() == [7, 0]
        assert changes(F, served, 2)["0"][0].tolist() == [[0, 2, 3], [4, 5, 6]]
    assert frozen(bank).take(1)["0"]["bits@0"].tolist() == [0b01011001]


def test_what_is_common_is_stored_once_and_a_task_is_a_bit_a_number():
    served = frozen(made(SCORES, COMMON))
    assert served.tables["shared"].n == 8 and served.tables["fixed.uint8"].n == 1 and served.tables["own"].n == 0


def test_the_gradient_of_a_score_is_that_of_its_mask():
    bank, x, g = made(SCORES, COMMON), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
    adapted = Adapted(F, [bank])
    source = adapted.sources[0]["own"] = bank.tables["own"].data.clone().requires_grad_()
    (adapted({"input": x}, Route.to([1])) * g).sum().backward()
    want = torch.cat([(g[0].T @ x[0]).flatten(), g[0].sum(0)]) * torch.tensor(COMMON)
    close(source.grad[1], want)
    assert source.grad[2].abs().max() == 0
