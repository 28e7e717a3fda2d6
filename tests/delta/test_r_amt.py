"""R-AMT: which gradients stay, how often, and that the draw is the slot's own."""

import torch
from laws._nasty import backbone, bank, close

from anabranch.core.names import make

AGREE, AGAINST = [[1.0, -2.0, 3.0, 0.0]], [[5.0, -1e-9, 0.0, -7.0]]  # where one of them is 0 nothing disagrees


def tree(score, seed=None):
    p = {"score": torch.tensor(score)}
    return {"site": p if seed is None else p | {"seed": torch.tensor(seed)}}


def test_what_agrees_stays_and_nothing_else_changes():
    for anchor in (tree(AGAINST), None):
        own, grad = make("delta", "r_amt").refine(tree(AGREE, 1), tree(AGREE), 0.5, anchor)
        assert grad["site"]["score"].tolist() == AGREE and own["site"]["score"].tolist() == AGREE


def test_what_disagrees_stays_as_often_as_it_is_larger():
    g, h = torch.full((100, 100), 3.0), torch.full((100, 100), -1.0)
    g[50:] *= -1e-30  # products of such numbers are 0 in single precision, their signs are not
    h[50:] *= -3e-30
    grad = make("delta", "r_amt").refine(
        {"s": {"score": g, "seed": torch.tensor(7)}}, {"s": {"score": g}}, 0.5, {"s": {"score": h}}
    )[1]["s"]["score"]
    large, equal = grad[:50] != 0, grad[50:] != 0
    assert set(grad.unique().tolist()) == {3.0, 0.0, g[50, 0].item()}
    assert abs(large.float().mean() - 0.75) < 0.025 and abs(equal.float().mean() - 0.5) < 0.03  # 4 standard deviations


def test_the_probability_is_that_of_the_paper():
    g, h = torch.randn(2, 1, 1000, generator=torch.Generator().manual_seed(0))
    paper = 0.5 * (1 + g.sign() * (g + h) / (g.abs() + h.abs()))
    u = torch.rand(g.shape, generator=torch.Generator().manual_seed(7))
    grad = make("delta", "r_amt").refine(
        {"s": {"score": g, "seed": torch.tensor(7)}}, {"s": {"score": g}}, 0.5, {"s": {"score": h}}
    )[1]
    assert torch.equal(grad["s"]["score"], torch.where(u < paper, g, 0.0)) and 0.6 < (u < paper).float().mean() < 0.9


def test_a_part_of_what_is_dropped_may_stay():
    g, h = tree([[1.0] * 50]), tree([[-1.0] * 50])
    whole, half = (make("delta", {"r_amt": {"drop": d}}).refine(tree([[1.0] * 50], 3), g, 0.5, h)[1] for d in (1.0, 0.5))
    close(half["site"]["score"], 0.5 + 0.5 * whole["site"]["score"], 1e-9)
    assert 0 < whole["site"]["score"].sum() < 50


def test_each_step_draws_anew_and_a_resumed_run_draws_the_same():
    r_amt = make("delta", "r_amt")
    made = bank(backbone("bert"), r_amt)
    own = made.take(2)
    assert all(p["seed"].dtype is torch.int64 and list(r_amt.freeze(p)) == ["bits"] for p in own.values())
    grad = {s: {"score": torch.ones_like(p["score"])} for s, p in own.items()}
    anchor = {s: {"score": -torch.ones_like(p["score"])} for s, p in own.items()}
    one, first = r_amt.refine(own, grad, 0.5, anchor)
    two, second = r_amt.refine(one, grad, 0.75, anchor)
    made.tables["fixed.int64"].put(2, {s: {"seed": p["seed"]} for s, p in one.items()})  # stored and read again
    again = r_amt.refine(made.take(2), grad, 0.75, anchor)[1]
    sites = list(own)
    for s in sites:
        assert torch.equal(again[s]["score"], second[s]["score"]) and not torch.equal(first[s]["score"], second[s]["score"])
        assert not torch.equal(one[s]["seed"], two[s]["seed"])
    assert not torch.equal(first[sites[0]]["score"], first[sites[1]]["score"])
    assert all((g["score"] == 1).all() for g in grad.values())  # what came in is as it was
