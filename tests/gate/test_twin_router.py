"""Twin-Merging's router: learns which task features are of, and shares out the experts by it."""

import torch
from laws._nasty import close

from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.gate.twin_router import fit, fresh, scores

rng = torch.Generator().manual_seed(0)
MEANS = 3 * torch.randn(4, 8, generator=rng) + 5


def rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    tasks = torch.arange(4).repeat_interleave(n)
    return MEANS[tasks] + torch.randn(4 * n, 8, generator=rng), tasks


def weigh(own, x, mask, on=None):
    gate = make("gate", {"twin_router": {"hidden": 16}})
    on = torch.ones(4, dtype=torch.bool) if on is None else on
    return gate.weigh(own, {}, At(x, x, mask), on)


def test_it_learns_the_tasks_and_weighs_new_rows_by_them():
    x, tasks = rows(40)
    own = fit(x, tasks, 4, rng, hidden=16)
    new, truth = rows(25)
    w = torch.stack([weigh(own, row[None], torch.ones(1, dtype=torch.bool)) for row in new])
    close(w.sum(1), torch.ones(100))
    assert (w.argmax(1) == truth).float().mean() > 0.95 and w[torch.arange(100), truth].mean() > 0.8


def test_two_hidden_layers_by_hand():
    own = fresh(2, 3, 4, rng)
    z = torch.tensor([1.0, -2.0])
    h = z
    for i in (0, 1):
        h = own[f"W{i}"] @ h + own[f"b{i}"]
        h = torch.where(h > 0, h, 0.01 * h)
    logits = own["W2"] @ h + own["b2"]
    close(scores(own, z), logits)
    off = torch.tensor([True, False, True, True])
    close(weigh(own, z[None], torch.ones(1, dtype=torch.bool), off), torch.softmax(logits.masked_fill(~off, -torch.inf), 0))


def test_it_reads_the_mean_of_the_real_tokens():
    own, x = fresh(8, 16, 4, rng), torch.randn(5, 8, generator=rng)
    mask = torch.tensor([True, True, True, False, False])
    close(weigh(own, x, mask), weigh(own, x[:3].mean(0, keepdim=True), mask[:1]))
