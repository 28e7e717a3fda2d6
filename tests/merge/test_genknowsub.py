import pytest
import torch
from merge._toy import bank as dense
from merge._toy import body, close, sites, trees

from anabranch.core.bank import Bank
from anabranch.core.fold import changes
from anabranch.core.names import make
from anabranch.errors import InputError

F = body(6, 6, 6)


def library(slots: int, gate="by_task") -> Bank:
    rng = torch.Generator().manual_seed(3)
    made = Bank.make(make("delta", {"lora": {"rank": 2, "alpha": 3.0}}), make("gate", gate), sites(F), rng)
    for _ in range(slots):
        slot = made.fresh(rng)
        for p in slot.values():
            p["b"] += torch.randn(p["b"].shape, generator=rng)
        made.add([slot])
    return made


def dW(bank: Bank, slot: int) -> torch.Tensor:
    return torch.stack([c[0] for c in changes(F, bank, slot).values()])


def sub(bank: Bank, **settings) -> Bank:
    return make("merge", {"genknowsub": settings})(bank, F)


@pytest.mark.parametrize("general", [1, 2])
def test_the_general_products_are_taken_off_exactly(general):
    made = library(2 + general)
    less = sub(made, general=general)
    mean = torch.stack([dW(made, 3 + i) for i in range(general)]).mean(0)
    assert len(less) == 2 and less.delta.rank == 2 * (1 + general)
    for slot in (1, 2):
        close(dW(less, slot), dW(made, slot) - mean)


def test_factors_as_released_are_another_matrix():
    made = library(4)
    less = sub(made, general=2, by="factors")
    key = made.sites[0].key
    a, b = ((made.take(1)[key][n] - (made.take(3)[key][n] + made.take(4)[key][n]) / 2) for n in "ab")
    assert len(less) == 2 and less.delta.rank == 2
    close(changes(F, less, 1)[key][0], (a @ b).T * 3 / 2)
    assert (dW(less, 1) - dW(sub(made, general=2), 1)).abs().max() > 0.1


def test_other_kinds_become_dense_and_keep_their_biases():
    slots = trees(F, 3)
    less = sub(dense(F, slots))
    for slot in (1, 2):
        for key, p in less.take(slot).items():
            for n, t in p.items():
                close(t, slots[slot - 1][key][n] - slots[2][key][n])
    with pytest.raises(InputError, match="only LoRA has factors"):
        sub(dense(F, slots), by="factors")
    with pytest.raises(InputError, match="the last 3 slots"):
        sub(library(3), general=3)


def test_arrow_reads_its_keys_from_the_residual_modules():
    made = library(3, {"arrow": {}})
    less = sub(made)
    key = made.sites[0].key
    change = changes(F, made, 1)[key][0] - changes(F, made, 3)[key][0]
    direction = torch.linalg.svd(change).Vh[0]  # the input direction that the residual answers most
    (name,) = [n for n in less.take(1)[key] if n.startswith("key.")]
    found = less.take(1)[key][name].flatten()
    close((found @ direction).abs() / found.norm(), torch.ones(()), 1e-4)
    assert type(less.gate) is type(made.gate)
