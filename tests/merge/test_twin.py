import pytest
import torch
from merge._toy import bank, body, close, trees

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.fold import changes
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.errors import InputError

F = body(6, 6, 5)
TREES = trees(F, 3)


def twin(**settings):
    return make("merge", {"twin": settings})(bank(F, TREES), F)


@pytest.mark.parametrize("merge", ["task_arithmetic", "mean", {"ties": {"density": 0.5}}])
def test_full_rank_is_every_expert_and_rank_r_is_the_best_of_its_rank(merge):
    for rank in (6, 2):
        made = twin(rank=rank, merge=merge)
        for j, tree in enumerate(TREES):
            for key, (dW, db) in changes(F, made, j + 1).items():
                shared = made.tables["shared"].get(1)[""][f"CW@{key}"]
                gone = dW - tree[key]["W"]
                s = torch.linalg.svdvals(tree[key]["W"] - shared)
                close(gone.square().sum(), s[rank:].square().sum())  # Eckart and Young
                close(db, tree[key]["b"])


def test_the_shared_expert_is_the_merge():
    made = twin(scale=0.3)
    close(made.tables["shared"].get(1)[""]["CW@0"], 0.3 * sum(tree["0"]["W"] for tree in TREES))
    with pytest.raises(InputError, match="at least 2 tasks"):
        make("merge", "twin")(bank(F, TREES[:1]), F)


def test_a_rank_beyond_all_layers_is_the_full_one_and_new_slots_fit():
    made = twin(rank=16)  # layers of rank 6 and 5
    assert made.delta.rank == 6
    fresh = Bank.make(made.delta, made.gate, made.sites, torch.Generator())
    assert fresh.tables["own"].layout == made.tables["own"].layout


def test_routed_weights_give_the_shared_expert_and_a_mixture_of_the_others():
    made, x = twin(rank=2), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    w = torch.softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(2)), 1)
    got = Adapted(F, [made])({"input": x[:, None]}, Route.to([[1, 2, 3]] * 4, w=w))[:, 0]
    for i in range(4):
        h = x[i]
        for m, key in enumerate("02"):
            mixed = [changes(F, made, j + 1)[key] for j in range(3)]
            h = h @ (F[int(key)].weight + sum(w[i, j] * c[0] for j, c in enumerate(mixed))).T
            h = h + F[int(key)].bias + sum(w[i, j] * c[1] for j, c in enumerate(mixed))
            h = torch.tanh(h) if m == 0 else h
        close(got[i], h)


def test_blending_slots_is_exact():
    made, w = twin(rank=2), torch.tensor([0.2, 0.5, 0.3])
    own = {n: torch.stack([made.take(j)["0"][n] for j in (1, 2, 3)]) for n in made.take(1)["0"]}
    p = made.delta.blend(own, w) | made.tables["shared"].get(1)[""]
    want = [sum(float(w[j]) * changes(F, made, j + 1)["0"][i] for j in range(3)) for i in (0, 1)]
    dW, db = made.delta.weight(p, F[0].weight, F[0].bias)
    close(dW, want[0])
    close(db, want[1])
