"""One change for all and a low rank for each: what a slot adds, and blending that is exact."""

import torch
from laws._nasty import close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.fold import changes
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import find


def made(f, at, gate="by_task", rank=2, slots=3) -> Bank:
    rng = torch.Generator().manual_seed(0)
    bank = Bank.make(make("delta", {"common_low_rank": {"rank": rank}}), make("gate", gate), find(f, at), rng, routes=slots)
    bank.add([bank.fresh(rng) for _ in range(slots)])
    for table in ("own", "shared"):
        bank.tables[table].data[1:] += torch.randn(bank.tables[table].data[1:].shape, generator=rng)
    return bank


def test_by_the_equation():
    f = nn.Sequential(nn.Linear(4, 3))
    bank = made(f, "0")
    p, common = bank.take(2)["0"], bank.tables["shared"].get(1)[""]
    dW, db = changes(f, bank, 2)["0"]
    close(dW, common["CW@0"] + p["u@0"] @ p["v@0"])
    close(db, common["Cb@0"] + p["b@0"])
    assert bank.tables["own"].n == 2 * (4 + 3) + 3 and bank.tables["shared"].n == 4 * 3 + 3


def test_a_gate_that_blends_parameters_gives_the_mixed_weights():
    """Sum of products, not product of sums: a softmax over the slots keeps all of what is common."""
    f, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 5, 4)
    bank = made(f, "0", {"twin_router": {"hidden": 5}})
    bank.add_gate(bank.gates(torch.Generator().manual_seed(1)))
    got = Adapted(f, [bank])({"input": x}, Route.to([[1, 2, 3]] * 2, who=torch.ones(2, dtype=torch.long)))
    mine = bank.tables["gate"].get(1)["0"]
    from anabranch.gate.twin_router import scores

    for i in range(2):
        w = torch.softmax(scores(mine, x[i].mean(0)), 0)
        mixed = [sum(float(w[j]) * changes(f, bank, j + 1)["0"][n] for j in range(3)) for n in (0, 1)]
        close(got[i], x[i] @ (f[0].weight + mixed[0]).T + f[0].bias + mixed[1])


def test_it_sits_at_norms_and_embeddings_too():
    f = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4))
    bank = made(f, ["0", "1"])
    ids = torch.tensor([[3, 1, 6]])
    (E, _), (scale, shift) = changes(f, bank, 1).values()
    h = (f[0].weight + E)[ids]
    normed = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    close(Adapted(f, [bank])({"input": ids}, Route.to([1])), normed * (f[1].weight + scale) + f[1].bias + shift)
