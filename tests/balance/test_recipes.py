"""visatb, stg_mtl, covalign_mtl: weights from probing runs, training dynamics and features."""

import math

import pytest
import torch
from laws._nasty import close
from laws.balance import Toy

from anabranch.balance.covalign_mtl import similarity, theta
from anabranch.balance.covalign_mtl import weights as svd_weights
from anabranch.balance.stg_mtl import maps, membership
from anabranch.balance.visatb import weights
from anabranch.core.names import make
from anabranch.errors import InputError


def test_visatb_weights_by_hand():
    """out = [0.2, 0.1], in = [0.1, 0.2], difficulty 1 - score = [0.5, 0.25], tau = 0.5."""
    found = weights(torch.tensor([[9.0, 0.2], [0.1, 9.0]]), torch.tensor([0.5, 0.75]), 0.5)
    giving = 1 / (1 + math.exp(-0.2))  # also its share for receiving little
    hard = 1 / (1 + math.exp(-0.5))
    first = 2 * (giving + hard) / 2
    close(found, torch.tensor([first, 2 - first]))


def test_visatb_asks_for_a_run_without_each_task_and_weighs_givers_more():
    class Giving(Toy):
        def __call__(self, given):  # a helps the others by 0.2
            run = super().__call__(given)
            return run._replace(scores={t: 0.5 + 0.2 * (given["a"] > 0) * (t != "a") for t in self.tasks})

    train = Giving(["a", "b", "c"])
    served = make("balance", "visatb")(train, ["a", "b", "c"])
    assert train.asked[:4] == [dict(zip("abc", w, strict=True)) for w in ((1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0))]
    assert len(train.asked) == 5 and train.asked[4]["a"] > train.asked[4]["b"] == pytest.approx(train.asked[4]["c"])
    assert {run.slot for run in served.values()} == {5}


def test_a_data_map_is_mean_and_spread_after_each_pass():
    truth = torch.tensor([[0.2, 0.9], [0.6, 0.9]])
    close(maps([truth, truth])[0], torch.tensor([0.2, 0.9, 0, 0, 0.4, 0.9, 0.2, 0]))


def test_maps_of_unlike_rows_are_compared_sorted():
    found = maps([torch.tensor([[0.1, 0.5, 0.3]]), torch.tensor([[0.3, 0.1]])])
    close(found, torch.tensor([[0.1, 0.5, 0, 0], [0.1, 0.3, 0, 0]]))


def test_membership_by_hand_and_on_a_centre():
    x = torch.tensor([[0.0], [0.2], [10.0], [10.2]])
    u = membership(x, 2, 3.0, 0)
    wanted = torch.tensor([1 / (1 + 0.1 / 10.1), 1 / (1 + 0.1 / 9.9)]).double()  # centres 0.1 and 10.1, exponent 1
    close(u[:2].max(1).values, wanted)
    close(u.sum(1), torch.ones(4).double())
    assert u[0].argmax() == u[1].argmax() != u[2].argmax() == u[3].argmax()
    hard = membership(torch.tensor([[0.0], [1.0]]), 2, 1.07, 0)
    close(hard.max(1).values, torch.ones(2).double())


def test_stg_finds_hidden_families_and_trains_one_slot_for_each():
    class Families(Toy):
        def __call__(self, given):
            run = super().__call__(given)
            rng = torch.Generator().manual_seed(3)
            base = {f: torch.rand(3, 20, generator=rng) for f in "xy"}
            return run._replace(truth={t: base[t[0]] + 0.02 * torch.rand(3, 20, generator=rng) for t in self.tasks})

    tasks = ["x1", "y1", "x2", "y2", "x3"]
    train = Families(tasks)
    served = make("balance", {"stg_mtl": {"clusters": 2}})(train, tasks)
    assert served["x1"].slot == served["x2"].slot == served["x3"].slot != served["y1"].slot == served["y2"].slot
    assert len(train.asked) == 3
    assert all(w["y1"] == 0 for w in train.asked[1:] if w["x1"] > 0.5)  # left out, not weighted by 1e-9
    with pytest.raises(InputError, match="as many tasks as clusters"):
        make("balance", {"stg_mtl": {"clusters": 6}})(train, tasks)


def test_svd_weights_by_hand():
    """Two tasks along the first axis, one across: at rank 1 it counts nothing."""
    thetas = [torch.tensor([[2.0], [0.0]]), torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0], [1.0]])]
    close(svd_weights(thetas, 1), torch.tensor([1.5, 1.5, 0.0]))
    close(svd_weights(thetas, 2), torch.tensor([1.2, 1.2, 0.6]))


def test_theta_is_the_correlation_of_features_and_targets():
    x, y = torch.randn(50, 4), torch.randn(50, 1)
    close(theta(x, y), x.mT @ (y - y.mean()) / 50 / y.std(correction=0))
    close(theta(x, 10 * y + 3), theta(x, y), 1e-4)
    assert torch.equal(theta(x, torch.ones(50, 1)), torch.zeros(4, 1))


def test_a_task_of_noise_counts_less():
    class Noisy(Toy):
        def features(self, task):
            rng = torch.Generator().manual_seed(self.tasks.index(task))
            x, truth = torch.randn(400, 8, generator=rng), torch.tensor([1.0, -1, 0, 0, 0, 0, 0, 0])
            clean = (x @ truth)[:, None].sign()
            return x, clean if task != "noise" else torch.randn(400, 1, generator=rng).sign()

    train = Noisy(["a", "b", "noise", "c"])
    make("balance", {"covalign_mtl": {"rank": 1}})(train, train.tasks)
    (given,) = train.asked
    assert given["noise"] < 0.3 * min(given[t] for t in "abc")


def test_covariances_are_alike_up_to_noise_and_not_when_rotated_away():
    x = torch.randn(100, 2) @ torch.eye(2, 6)
    other = torch.randn(100, 2) @ torch.eye(6)[2:4]
    close(similarity(x, 3 * x, 2), torch.tensor(1.0), 1e-4)
    close(similarity(x, other, 2), torch.tensor(0.0))
    q = torch.linalg.qr(torch.randn(100, 100)).Q
    close(similarity(x, q @ x, 2), torch.tensor(1.0), 1e-4)  # of rows, whose covariance is the same
