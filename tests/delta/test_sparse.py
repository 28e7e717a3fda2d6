"""Places and values: what they add, what they cost, what trains."""

import torch
from laws._nasty import backbone, bank, close
from torch import nn

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.delta import At
from anabranch.core.fold import changes
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import find

F = nn.Sequential(nn.Linear(3, 2))


def made(*slots) -> Bank:
    out = Bank(make("delta", "sparse"), make("gate", "by_task"), find(F, "0"))
    trees = [{"0": {"values": torch.tensor(v), "places": torch.tensor(p, dtype=torch.int32)}} for v, p in slots]
    out.adopt(trees[0], {}, {})
    out.add(trees)
    return out


def test_by_hand():
    both = made(([5.0, 6.0, 7.0], [0, 5, 6]), ([1.0, 2.0, 9.0], [4, 0, -1]))  # place 6 is the first bias, -1 is none
    dW, db = changes(F, both, 1)["0"]
    assert dW.tolist() == [[5, 0, 0], [0, 0, 6]] and db.tolist() == [7, 0]
    assert changes(F, both, 2)["0"][0].tolist() == [[2, 0, 0], [0, 1, 0]]


def test_no_gradient_reaches_a_place_that_is_none():
    both = made(([1.0, 2.0, 9.0], [4, 0, -1]))
    adapted, x, g = Adapted(F, [both]), torch.randn(1, 4, 3), torch.randn(1, 4, 2)
    source = adapted.sources[0]["own"] = both.tables["own"].data.clone().requires_grad_()
    (adapted({"input": x}, Route.to([1])) * g).sum().backward()
    full = (g[0].T @ x[0]).flatten()
    close(source.grad[1], torch.stack([full[4], full[0], torch.zeros(())]))


def test_a_fresh_slot_changes_nothing_at_its_share_of_places():
    fresh = bank(backbone("bert"), {"sparse": {"density": 0.1}}, spread=0)
    for site, p in fresh.take(1).items():
        n = sum(t.numel() for t in (fresh.sites[0].module(backbone("bert")).weight, fresh.sites[0].module(backbone("bert")).bias))
        assert p["values"].abs().max() == 0 and len(p["places"].unique()) == len(p["places"]), site
        assert n > 1000 and (site != fresh.sites[0].key or len(p["places"]) == round(0.1 * n))
    assert not torch.equal(fresh.take(1)[fresh.sites[0].key]["places"], fresh.take(2)[fresh.sites[0].key]["places"])


def test_the_penalty_counts_real_places():
    sparse = make("delta", {"sparse": {"l1": 0.5}})
    at, who = At(torch.zeros(2, 4, 3), torch.zeros(2, 4, 2), torch.ones(2, 4, dtype=torch.bool)), torch.tensor([0, 0])
    p = {"values": torch.tensor([1.0, -2.0, 9.0]), "places": torch.tensor([0, 3, -1])}
    assert sparse.penalty(p, at, who) == 1.5
