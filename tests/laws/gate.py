"""What every gate promises: slots that are off weigh nothing, one-hot is hard routing, a new slot moves no other key."""

from dataclasses import fields

import pytest
import torch
from torch import Generator, Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.delta import At
from anabranch.core.gate import Gate
from anabranch.core.names import every, make
from anabranch.core.route import Route
from anabranch.core.site import find

D, L = 6, 5


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def body() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Tanh(), torch.nn.Linear(D, D))


def bank_of(gate: Gate, slots: int, routes: int) -> Bank:
    f = body()
    bank = Bank.make(make("delta", {"lora": {"rank": 2, "alpha": 2.0}}), gate, find(f, ["0", "2"]), rng(), routes=routes)
    bank.add([bank.fresh(rng(i)) for i in range(slots)])
    bank.tables["own"].data[1:] += 0.3 * torch.randn(bank.tables["own"].data[1:].shape, generator=rng(9))
    bank.add_gate(bank.gates(rng()))
    return bank


def answer(bank: Bank, ids: list[int], x: Tensor) -> Tensor:
    route = Route.to(torch.tensor([ids] * len(x)), who=torch.ones(len(x), dtype=torch.long))
    with torch.no_grad():
        return torch.as_tensor(Adapted(body(), [bank])({"input": x}, route))


def weigh(bank: Bank, ids: list[int], on: list[bool]) -> Tensor:
    site = bank.sites[0].key
    keys = {n[4:]: torch.stack([bank.take(i)[site][n] for i in ids]) for n in bank.take(1)[site] if n.startswith("key.")}
    mine = bank.tables["gate"].get(1).get(site, {})
    x = torch.randn(L, D, generator=rng(3))
    return bank.gate.weigh(mine, keys, At(x, x, torch.ones(L, dtype=torch.bool)), torch.tensor(on))


@pytest.mark.parametrize("name", every("gate"))
def test_what_is_off_weighs_nothing_in_the_mix(name: str) -> None:
    """A row whose second candidate is 0 answers as if there were one candidate of that weight, and never NaN."""
    bank, x = bank_of(make("gate", name), 2, 2), torch.randn(3, L, D, generator=rng(4))
    alone = answer(bank, [1, 0], x)
    bank.tables["own"].data[2] = float("nan")
    assert torch.isfinite(alone).all() and torch.equal(alone, answer(bank, [1, 0], x))


@pytest.mark.parametrize("name", every("gate"))
def test_no_candidates_is_f_itself(name: str) -> None:
    bank, x = bank_of(make("gate", name), 2, 2), torch.randn(3, L, D, generator=rng(4))
    assert torch.equal(answer(bank, [0, 0], x), body()(x).detach())


@pytest.mark.parametrize("name", every("gate"))
def test_a_plain_gate_weighs_one(name: str) -> None:
    gate = make("gate", name)
    w = weigh(bank_of(gate, 3, 3), [1, 2, 3], [True, False, True])
    assert w.shape[-1] == 3 and torch.isfinite(w).all()
    if gate.plain:
        assert w.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("name", every("gate"))
def test_one_hot_is_hard_routing(name: str) -> None:
    """One candidate, weight 1: the row answers as under the plain task id."""
    bank, plain = bank_of(make("gate", name), 3, 1), bank_of(make("gate", "by_task"), 3, 1)
    plain.tables["own"].data = bank.tables["own"].data.clone()
    x = torch.randn(3, L, D, generator=rng(5))
    torch.testing.assert_close(answer(bank, [2], x), answer(plain, [2], x))


@pytest.mark.parametrize("name", every("gate"))
def test_a_new_slot_leaves_keys_and_answers_of_the_others(name: str) -> None:
    bank, x = bank_of(make("gate", name), 3, 3), torch.randn(3, L, D, generator=rng(6))
    keys, before = bank.tables["keys"].data.clone(), answer(bank, [1, 2, 3], x)
    bank.add([bank.fresh(rng(77))])
    assert torch.equal(bank.tables["keys"].data[:4], keys) and torch.equal(answer(bank, [1, 2, 3], x), before)


@pytest.mark.parametrize("name", every("gate"))
def test_a_gate_is_a_frozen_dataclass_of_settings(name: str) -> None:
    gate = make("gate", name)
    assert make("gate", {name: {f.name: getattr(gate, f.name) for f in fields(gate)}}) == gate
