"""Tables of rows: growth, removal, layouts, gathering, and what is stored apart from what is trained."""

from dataclasses import dataclass

import pytest
import torch
from laws._nasty import backbone, bank, frozen
from torch import Generator, Tensor

from anabranch.core.bank import Bank, Table
from anabranch.core.delta import Delta
from anabranch.core.gate import Gate
from anabranch.core.names import make
from anabranch.core.site import find
from anabranch.errors import InputError


@dataclass(frozen=True)
class Mixed(Delta):
    """Own tensors of every sort: trained, fixed floats, indices, a single number; and one copy for all slots."""

    fixed = frozenset({"basis"})

    def init(self, site, rng: Generator, seen=None):
        return {
            "scale": torch.randn((), generator=rng),
            "basis": torch.randn(2, site.d_out, generator=rng),
            "ids": torch.randint(0, 9, (3,), generator=rng),
            "on": torch.rand(site.d_out, generator=rng) > 0.5,
        }

    def shared(self, sites, rng):
        return {"common": torch.randn(4, generator=rng)}

    def apply(self, p, at) -> Tensor:
        return at.y * p["scale"] + p["basis"].sum(0) * p["on"] + p["common"].sum() + p["ids"].sum()


@dataclass(frozen=True)
class Keys(Gate):
    def own(self, site, slots, rng):
        return {"c": torch.randn(slots, generator=rng)}

    def key(self, site, p, rng, seen=None):
        return {"k": p["basis"].mean(0)}

    def weigh(self, own, keys, at, on):
        return own["c"]


def mixed(slots: int = 3) -> Bank:
    rng = Generator().manual_seed(0)
    made = Bank.make(Mixed(), Keys(), find(backbone("bert"), "attention.query"), rng, routes=2)
    made.add([made.fresh(rng) for _ in range(slots)])
    return made


def same(a, b) -> bool:
    return all(torch.equal(t, b[s][n]) and t.dtype is b[s][n].dtype for s, p in a.items() for n, t in p.items())


# ---- tables


def test_a_table_splits_into_the_tensors_that_were_put():
    layout = {"a": {"w": torch.Size([2, 3]), "s": torch.Size([])}, "b": {"w": torch.Size([4])}}
    table = Table(layout)
    assert len(table) == 1 and table.n == 11 and list(table.grow(2)) == [1, 2]
    tree = {"a": {"w": torch.arange(6.0).view(2, 3), "s": torch.tensor(9.0)}, "b": {"w": torch.arange(4.0)}}
    table.put(2, tree)
    assert same(table.get(2), tree) and not table.data[:2].any()
    rows = table.split(table.data[torch.tensor([[2, 0], [1, 2]])])
    assert rows["a"]["w"].shape == (2, 2, 2, 3) and rows["a"]["s"].shape == (2, 2)
    assert torch.equal(rows["b"]["w"][1, 1], torch.arange(4.0))


def test_growth_keeps_bits_and_copies_seldom():
    table = Table({"a": {"w": torch.Size([5])}})
    table.grow(1)
    table.data[1] = torch.randn(5)
    first, moves = table.data[1].clone(), 0
    for _ in range(200):
        before = table.data.data_ptr()
        table.grow(1)
        moves += before != table.data.data_ptr()
    assert len(table) == 202 and moves < 10
    assert torch.equal(table.data[1], first) and not table.data[2:].any() and not table.data[0].any()


def test_rows_that_grow_after_others_left_are_zero():
    table = Table({"a": {"w": torch.Size([2])}})
    table.grow(5)
    table.data[1:] = 7
    table.shrink([1])
    table.grow(1)
    assert table.data.tolist() == [[0, 0], [7, 7], [0, 0]]


def test_an_empty_layout_is_a_table_too():
    table = Table({})
    table.grow(3)
    table.put(1, {})
    assert len(table) == 4 and table.n == 0 and table.split(table.data) == {} and table.get(2) == {}


# ---- slots


def test_tensors_are_stored_by_what_is_done_with_them():
    made = mixed()
    assert len(made) == 3
    names = {n: [part[1] for part in t.parts] for n, t in made.tables.items()}
    assert names["own"] == ["scale"] * 2 and names["keys"] == ["k"] * 2 and names["shared"] == ["common"]
    assert names["gate"] == ["c"] * 2
    stored = [n for n in names if n.startswith("fixed")]
    assert sorted(sum((names[n] for n in stored), [])) == ["basis"] * 2 + ["ids"] * 2 + ["on"] * 2
    assert all(not t.data[0].any() for n, t in made.tables.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_taken_and_added_again_it_is_the_same_bits(dtype):
    made = mixed().to(dtype)
    taken = made.take(2)
    assert set(taken[made.sites[0].key]) == {"scale", "basis", "ids", "on", "key.k"}
    assert made.add([taken]) == [4] and same(made.take(4), taken)


def test_adding_and_removing_leaves_every_other_bit():
    made = mixed(4)
    trees = [made.take(i) for i in range(1, 5)]
    made.add([made.fresh(Generator().manual_seed(5))])
    assert all(same(made.take(i), trees[i - 1]) for i in range(1, 5))
    assert made.remove([2, 5]) == {0: 0, 1: 1, 3: 2, 4: 3} and len(made) == 3
    assert all(same(made.take(new), trees[old - 1]) for new, old in ((1, 1), (2, 3), (3, 4)))
    assert made.remove([1, 2, 3]) == {0: 0} and len(made) == 0
    assert made.add([trees[0]]) == [1] and same(made.take(1), trees[0])


def test_what_was_taken_is_the_callers_own():
    made = mixed()
    taken, before = made.take(1), made.tables["own"].data.clone()
    taken[made.sites[0].key]["scale"] += 1
    assert torch.equal(made.tables["own"].data, before)


@pytest.mark.parametrize("slot", [0, -1, 4])
def test_slots_that_are_not_there_are_refused(slot):
    with pytest.raises(InputError, match=rf"the bank has slots 1 to 3, got {slot}"):
        mixed().take(slot)
    with pytest.raises(InputError, match=rf"the bank has slots 1 to 3, got {slot}"):
        mixed().remove([1, slot])


def test_a_slot_of_another_layout_is_refused_and_nothing_is_added():
    f = backbone("bert")
    made, wide = bank(f, "lora"), bank(f, {"lora": {"rank": 4}})
    for strange in (wide.take(1), bank(f, "adapter").take(1), bank(f, "lora", at="attention.query").take(1), {}):
        with pytest.raises(InputError, match="does not fit"):
            made.add([made.take(1), strange])
        assert len(made) == 3 and {len(t) for n, t in made.tables.items() if n in made.slot_tables} == {4}


def test_a_bank_serves_in_another_type_without_touching_the_one_in_training():
    made = mixed()
    made.add_gate(made.gates(Generator().manual_seed(1)))
    before = {n: t.data.clone() for n, t in made.tables.items()}
    served = frozen(made, torch.bfloat16)
    for name, table in served.tables.items():
        assert table.data.dtype is (torch.bfloat16 if table.data.is_floating_point() else table.data.dtype)
        assert len(table) == len(made.tables[name])
    assert all(torch.equal(made.tables[n].data, t) and made.tables[n].data.dtype is t.dtype for n, t in before.items())
    served.tables["gate"].data.zero_()
    assert torch.equal(made.tables["gate"].data, before["gate"])


def test_an_empty_bank_freezes_to_an_empty_bank():
    made = mixed(0)
    served = frozen(made, torch.bfloat16)
    assert served is not made and len(served) == 0 and made.tables["shared"].data.dtype is torch.float32


def test_fresh_slots_come_from_the_generator_alone():
    made = mixed(0)
    a, b, c = (made.fresh(Generator().manual_seed(s)) for s in (1, 1, 2))
    assert same(a, b) and not same(a, c)


def test_statistics_reach_init_site_by_site():
    f = backbone("bert")
    sites = find(f, "attention.query")
    seen = {s.key: {"mean": torch.full((32,), float(i + 1))} for i, s in enumerate(sites)}
    made = Bank.make(make("delta", "offset"), make("gate", "keyed"), sites, Generator(), seen)
    made.add([made.fresh(Generator(), seen)])
    for site in sites:
        torch.testing.assert_close(made.take(1)[site.key]["key.key"], torch.full((32,), 32**-0.5))
