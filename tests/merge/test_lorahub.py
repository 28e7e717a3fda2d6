import pytest
import torch
from merge._toy import bank as dense
from merge._toy import body, close, look, sites, trees, vector

from anabranch.core.bank import Bank
from anabranch.core.fold import changes
from anabranch.core.names import make
from anabranch.errors import InputError

F = body(6, 6, 6)


def library(slots: int = 3) -> Bank:
    rng = torch.Generator().manual_seed(3)
    made = Bank.make(make("delta", {"lora": {"rank": 2, "alpha": 3.0}}), make("gate", "by_task"), sites(F), rng)
    for _ in range(slots):
        slot = made.fresh(rng)
        for p in slot.values():
            p["b"] += torch.randn(p["b"].shape, generator=rng)
        made.add([slot])
    return made


def tree(made: Bank, slot: int):
    return {k: {"W": c[0], "b": torch.zeros(len(c[0]))} for k, c in changes(F, made, slot).items()}


def hub(made, eye, **settings):
    return make("merge", {"lorahub": settings})(made, F, eye)


def test_factors_are_summed_then_multiplied_and_products_are_summed():
    made, w = library(), torch.tensor([0.8, -0.5, 0.3])
    own = [made.take(i) for i in (1, 2, 3)]
    factors = {
        k: {
            "W": sum(x * o[k]["b"] for x, o in zip(w, own, strict=True)).T
            @ sum(x * o[k]["a"] for x, o in zip(w, own, strict=True)).T
            * 1.5,
            "b": torch.zeros(6),
        }
        for k in "02"
    }
    products = {k: {"W": sum(x * tree(made, i + 1)[k]["W"] for i, x in enumerate(w)), "b": torch.zeros(6)} for k in "02"}
    for compose, target in (("factors", factors), ("products", products)):
        got = hub(made, look(F, [target]), compose=compose, evaluations=400, alpha=0.0)
        start, end = (
            float(look(F, [target]).losses(t)[0])
            for t in ({k: {n: 0 * t for n, t in p.items()} for k, p in target.items()}, tree(got, 1))
        )
        assert end < 0.02 * start, compose
        assert got.delta.rank == (2 if compose == "factors" else 6)  # foldable to one LoRA
        assert len(got) == 3 and torch.equal(vector(tree(got, 1)), vector(tree(got, 3)))


def test_weights_stay_in_their_bounds_and_the_penalty_keeps_them_small():
    slots = trees(F, 2)
    far = [{k: {n: 5 * t for n, t in slots[0][k].items()} for k in slots[0]}]
    got = hub(dense(F, slots), look(F, far), compose="products", alpha=0.0, evaluations=200)
    close(
        vector(tree(got, 1)).norm() / vector({k: {"W": p["W"], "b": 0 * p["b"]} for k, p in slots[0].items()}).norm(),
        torch.tensor(1.5),
        0.1,
    )
    none = hub(dense(F, slots), look(F, slots[:1]), compose="products", alpha=1e6, evaluations=30)
    assert vector(tree(none, 1)).abs().max() == 0  # f, where the search began


def test_few_evaluations_already_help_and_there_are_no_more_of_them():
    slots, calls = trees(F, 4), []
    eye = look(F, slots[:1])
    losses = eye.losses
    eye.losses = lambda t: calls.append(1) or losses(t)
    got = hub(dense(F, slots), eye, compose="products", evaluations=40)
    assert (
        len(calls) <= 40
        and losses(tree(got, 1))[0] < 0.5 * losses({k: {n: 0 * t for n, t in p.items()} for k, p in slots[0].items()})[0]
    )
    with pytest.raises(InputError, match="only LoRA has factors"):
        hub(dense(F, slots), eye)
