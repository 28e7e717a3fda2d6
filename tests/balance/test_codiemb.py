import math

import torch
from laws._nasty import close
from laws.balance import point
from scipy.stats import rankdata

from anabranch.balance.codiemb import TAU, contrastive, losses, ordered
from anabranch.core.names import every, find, make


def test_each_step_is_one_tasks_and_all_get_as_many():
    method, state, turns = make("balance", "codiemb"), None, []
    for _ in range(6):
        found, state = method(state, point(torch.eye(3)))
        turns.append(int(found.argmax()))
    assert turns == [0, 1, 2, 0, 1, 2]
    found, state = method(state, point(torch.eye(2), ["late", "task 1"]))
    assert found[0] == 1  # who comes late has had fewest


def test_losses_are_named_by_kinds():
    from anabranch.task import kind

    assert all(kind.find(name) for name in losses)


def test_with_single_positives_it_is_the_usual_contrastive_loss():
    z = torch.randn(8, 5)
    unit = torch.nn.functional.normalize(z, dim=1)
    wanted = torch.nn.functional.cross_entropy(unit[0::2] @ unit[1::2].mT / TAU, torch.arange(4), reduction="none")
    close(contrastive(z, None, [2] * 4), wanted, 1e-4)


def test_a_document_of_two_queries_is_a_positive_of_both():
    q, d = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 1.0])
    out = torch.stack([q[0], d, q[1], d])
    close(contrastive(out, None, [2, 2]), torch.zeros(2))


def test_the_order_loss_is_its_three_parts():
    x, y = torch.tensor([0.3, -0.1, 0.8, 0.2]), torch.tensor([1.0, 0.0, 3.0, 1.0])
    pearson = torch.corrcoef(torch.stack([x, y]))[0, 1]
    p = torch.softmax(torch.from_numpy(rankdata(y) - 1).float() / 3 / TAU, 0)
    kl = (p * (p.log() - (x / x.std()).log_softmax(0))).sum()
    pairs, total = 0.0, 0.0
    for i in range(4):
        for j in range(4):
            if y[i] > y[j]:
                pairs += float(y[i] - y[j]) * math.log1p(math.exp(float(x[j] - x[i])))
                total += float(y[i] - y[j])
    close(ordered(x[:, None], y[:, None], []), (1 - pearson + kl + pairs / total).expand(4), 1e-4)


def test_the_order_loss_falls_with_the_order_and_is_nothing_without_one():
    y = torch.arange(6.0)
    good, bad = ordered(y[:, None], y, [])[0], ordered(-y[:, None], y, [])[0]
    assert good < bad
    x = torch.randn(6, 1, requires_grad=True)
    flat = ordered(x, torch.ones(6), []).sum()
    assert flat == 0 and torch.equal(torch.autograd.grad(flat, x)[0], torch.zeros(6, 1))
    assert torch.autograd.grad(ordered(torch.zeros(6, 1, requires_grad=True) + 0 * x, y, []).sum(), x)[0].isfinite().all()


def test_its_soup_is_a_merge():
    assert "deviation_soup" in every("merge") and find("balance.codiemb")
