"""What every gate promises: slots that are off weigh nothing, one-hot is hard routing, a new slot moves no other key."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank, Tree
from anabranch.core.delta import At, Params
from anabranch.core.gate import Gate
from anabranch.core.names import every, make
from anabranch.core.route import Route
from anabranch.core.site import find

D, L = 6, 5
LORA = {"lora": {"rank": 2, "alpha": 2.0}}


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def body() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Tanh(), torch.nn.Linear(D, D))


def bank_of(gate: Gate, slots: int, routes: int, delta: Any = LORA, tasks: int = 1) -> Bank:
    f = body()
    bank = Bank.make(make("delta", delta), gate, find(f, ["0", "2"]), rng(), routes=routes)
    bank.add([slot(bank, rng(i)) for i in range(slots)])
    for task in range(tasks):
        bank.add_gate(bank.gates(rng(task)))
    return bank


def slot(bank: Bank, rng: Generator) -> Tree:
    """A slot that changes something, with the keys that its gate reads from it; learned keys are moved from their start."""
    tree = bank.fresh(rng)
    for site in bank.sites:
        p = {n: t + 0.3 * torch.randn(t.shape, generator=rng) for n, t in tree[site.key].items() if n[:4] != "key."}
        keys = bank.gate.key(site, p, rng)
        keys = {n: t + 0.3 * torch.randn(t.shape, generator=rng) if bank.gate.trained else t for n, t in keys.items()}
        tree[site.key] = p | {f"key.{n}": t for n, t in keys.items()}
    return tree


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


def one_hot(name: str, at: int) -> Gate:
    """The gate, but for its weights: 1 at one candidate for every token and block, 0 elsewhere."""
    kind = type(make("gate", name))

    def weigh(self: Gate, own: Params, keys: Params, row: At, on: Tensor) -> Tensor:
        w = kind.weigh(self, own, keys, row, on)
        return torch.nn.functional.one_hot(torch.tensor(at), w.shape[-1]).to(w).expand_as(w)

    return type("OneHot", (kind,), {"weigh": weigh, "plain": False})()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [n for n in every("gate") if type(make("gate", n)).combine is Gate.combine])
@pytest.mark.parametrize("at", [0, 2])
def test_one_hot_is_hard_routing(name: str, at: int) -> None:
    """Weights that are 1 at one candidate: the row answers as under the plain task id. (Sums that are not plain are not asked.)"""
    bank, plain = bank_of(one_hot(name, at), 3, 3), bank_of(make("gate", "by_task"), 3, 1)
    plain.tables["own"].data = bank.tables["own"].data.clone()
    x = torch.randn(3, L, D, generator=rng(5))
    torch.testing.assert_close(answer(bank, [1, 2, 3], x), answer(plain, [at + 1], x))


@pytest.mark.parametrize("name", every("gate"))
def test_a_row_keeps_top_slots_and_shares_of_at_most_one(name: str) -> None:
    """By row, by token or by block: no more than ``top`` weights count, and where weights are shares they are not negative."""
    gate = make("gate", name)
    w = weigh(bank_of(gate, 4, 4), [1, 2, 3, 4], [True, True, False, True])
    kept = torch.where(torch.tensor([True, True, False, True]), w, 0.0)
    assert kept.shape[-1] == 4 and (kept != 0).sum(-1).max() <= (gate.top or 3) and (kept != 0).any()
    if not gate.plain and type(gate).combine is Gate.combine:
        assert (kept >= 0).all() and (kept.sum(-1) <= 1 + 1e-6).all()


LIBRARY = [n for n in every("gate") if make("gate", n).library]


@pytest.mark.parametrize("name", LIBRARY)
def test_a_library_is_routed_with_nothing_but_its_keys(name: str) -> None:
    """Slots that were trained alone are not touched, and where a task has no numbers of its own a row needs no task."""
    gate = make("gate", name)
    bank, x = bank_of(gate, 3, 3), torch.randn(2, L, D, generator=rng(5))
    own = bank.tables["own"].data.clone()
    whole = answer(bank, [1, 2, 3], x)
    if not bank.tables["gate"].n:
        with torch.no_grad():
            assert torch.equal(Adapted(body(), [bank])({"input": x}, Route.to([[1, 2, 3]] * 2)), whole)
    assert torch.equal(bank.tables["own"].data, own) and not torch.equal(whole, body()(x).detach())


@pytest.mark.parametrize("name", every("gate"))
def test_a_new_slot_leaves_keys_and_answers_of_the_others(name: str) -> None:
    bank, x = bank_of(make("gate", name), 3, 3), torch.randn(3, L, D, generator=rng(6))
    keys, before = bank.tables["keys"].data.clone(), answer(bank, [1, 2, 3], x)
    bank.add([slot(bank, rng(77))])
    assert torch.equal(bank.tables["keys"].data[:4], keys) and torch.equal(answer(bank, [1, 2, 3], x), before)


@pytest.mark.parametrize("name", every("gate"))
def test_a_mixed_batch_equals_row_by_row_and_padding_is_unseen(name: str) -> None:
    bank, x = bank_of(make("gate", name), 4, 3), torch.randn(4, L, D, generator=rng(7))
    spread = {n: torch.randn(bank.gates(rng())[s][n].shape, generator=rng(1)) for s, p in bank.gates(rng()).items() for n in p}
    bank.add_gate({s: {n: t + spread[n] for n, t in p.items()} for s, p in bank.gates(rng()).items()})
    ids, who = torch.tensor([[1, 2, 3], [4, 0, 2], [0, 0, 0], [3, 1, 0]]), torch.tensor([1, 2, 1, 2])
    adapted = Adapted(body(), [bank])
    mixed = adapted({"input": x}, Route.to(ids, who=who))
    for i in range(4):
        one = adapted({"input": x[i : i + 1]}, Route.to(ids[i : i + 1], who=who[i : i + 1]))
        torch.testing.assert_close(one[0], mixed[i])
    run = Route.to(ids[:1].expand(9, -1), who=who[:1].expand(9))  # a long run shares its slots
    torch.testing.assert_close(adapted({"input": x[:1].expand(9, -1, -1)}, run)[3], mixed[0])
    longer = At(*(torch.nn.functional.pad(x[0], (0, 0, 0, 3), value=99.0),) * 2, torch.arange(L + 3) < L)
    site, on = bank.sites[0].key, torch.tensor([True, False, True])
    keys = {n[4:]: torch.stack([bank.take(i)[site][n] for i in (1, 2, 3)]) for n in bank.take(1)[site] if n[:4] == "key."}
    mine = bank.tables["gate"].get(2).get(site, {})
    short = bank.gate.weigh(mine, keys, At(x[0], x[0], torch.ones(L, dtype=torch.bool)), on)
    torch.testing.assert_close(bank.gate.weigh(mine, keys, longer, on)[: len(short)], short)


@pytest.mark.parametrize("name", every("gate"))
def test_no_gradient_reaches_slot_0_or_comes_from_a_row_without_slots(name: str) -> None:
    bank, x = bank_of(make("gate", name), 3, 3), torch.randn(2, L, D, generator=rng(8))
    adapted, tables = Adapted(body(), [bank]), ("own", "keys", "gate")
    leaves = adapted.sources[0] = {t: bank.tables[t].data.clone().requires_grad_() for t in tables if bank.tables[t].n}
    y = adapted({"input": x}, Route.to([[1, 0, 2], [0, 0, 0]], who=torch.tensor([1, 1])))
    y[0].square().sum().backward(retain_graph=True)
    assert all(t.grad.isfinite().all() and not t.grad[0].any() for t in leaves.values())
    assert leaves["own"].grad[1].any() and not leaves["own"].grad[3].any()
    for leaf in leaves.values():
        leaf.grad = None
    y[1].square().sum().backward()
    assert not any(t.grad.any() for t in leaves.values())


@pytest.mark.parametrize("name", [n for n in every("gate") if make("gate", n).top])
@pytest.mark.parametrize("delta", ["dense", {"adapter": {"size": 3}}, LORA])
@pytest.mark.parametrize("tasks", [1, 3])
def test_slot_by_slot_is_what_all_at_once_gives(name: str, delta: Any, tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and gradients, with rows of one or of several tasks; and no slot that nobody takes is computed."""
    if name == "arrow" and "adapter" in delta:
        pytest.skip("reads its keys from changes of linear layers")
    bank, x = bank_of(make("gate", {name: {"top": 2}}), 8, 8, delta, tasks), torch.randn(3, L, D, generator=rng(9))
    ids, who = torch.arange(1, 9).expand(3, -1), torch.arange(3) % tasks + 1
    found = []
    for route in (Route.to(ids, who=who), Route(ids, None, who)):  # one that knows its runs, one that gathers
        adapted, tables = Adapted(body(), [bank]), [t for t in ("own", "keys", "gate") if bank.tables[t].n]
        leaves = adapted.sources[0] = {t: bank.tables[t].data.clone().requires_grad_() for t in tables}
        y = adapted({"input": x}, route)
        y.square().sum().backward()
        found.append([y.detach(), *(leaf.grad for leaf in leaves.values())])
    with torch.no_grad():  # where nothing learns, rows of several tasks are weighed together
        found[0].append(Adapted(body(), [bank])({"input": x}, Route.to(ids, who=who)))
        found[1].append(found[1][0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    bank.tables["own"].data[1:5] = float("nan")  # where nobody takes these slots nobody sees it
    kind = type(bank.gate)
    last = lambda *given: kind.weigh(*given) * (torch.arange(8) > 3)  # noqa: E731
    bank.gate = type("Last", (kind,), {"weigh": last})(top=2)
    ran, apply = list[int](), type(bank.delta).apply
    monkeypatch.setattr(type(bank.delta), "apply", lambda *given: ran.append(1) or apply(*given))
    with torch.no_grad():
        assert torch.isfinite(Adapted(body(), [bank])({"input": x}, Route.to(ids, who=who))).all()
    assert len(ran) <= 2 * 4


@pytest.mark.parametrize("name", every("gate"))
def test_a_gate_is_a_frozen_dataclass_of_settings(name: str) -> None:
    gate = make("gate", name)
    assert make("gate", {name: {f.name: getattr(gate, f.name) for f in fields(gate)}}) == gate
