"""modo and sdmgrad, which take several batches for one direction: equal to TorchJD's weightings used as its manual says.

TorchJD runs in float64: in float32 its projection of large numbers loses the sum of 1, and with it all weights.
"""

import pytest
import torch
import torchjd.aggregation as jd
from balance.test_recorded import CASES
from engine.test_train import trainer
from laws.balance import point
from torch import Tensor

from anabranch.balance._samples import simplex
from anabranch.core.names import make
from anabranch.engine.share import balancer, share, start
from anabranch.errors import InputError

NAMES = ["a", "b", "c", "d", "e"]


def batches_of(case: str, count: int) -> list[Tensor]:
    """The recorded gradients [t, n] again and again, made small so that the weights stay inside the simplex for a while."""
    recorded = torch.tensor(CASES[case]["grads"])
    return [recorded[i % len(recorded)] * 0.3 for i in range(count)]


def run(spec, batches, names=NAMES) -> list[Tensor]:
    balancer, state, out = make("balance", spec), None, []
    for grads in batches:
        direction, state = balancer(state, point(grads, names))
        out += [] if direction is None else [direction]
    return out


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", [{}, {"gamma": 2.0, "rho": 0.0}, {"gamma": 30.0}])
def test_modo_is_torchjds_with_two_batches_and_with_three(case, settings):
    batches = batches_of(case, 12)
    exact = [grads.double() for grads in batches]
    weighting = jd.MoDoWeighting(**{"gamma": 0.1, "rho": 0.1} | settings)
    two = [weighting(a @ b.T) @ ((a + b) / 2) for a, b in zip(exact[::2], exact[1::2], strict=True)]
    close(run({"modo": settings}, batches), two)
    weighting.reset()
    three = [weighting(a @ b.T) @ c for a, b, c in zip(exact[::3], exact[1::3], exact[2::3], strict=True)]
    close(run({"modo": settings | {"batches": 3}}, batches), three)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", [{}, {"lambda_": 0.0, "n_iter": 3, "lr": 0.2}, {"momentum": 0.9, "lr": 1.0, "n_iter": 2}])
def test_sdmgrad_is_torchjds(case, settings):
    batches = batches_of(case, 12)
    exact = [grads.double() for grads in batches]
    weighting = jd.SDMGradWeighting(**settings)
    expected = [weighting(a @ b.T) @ c for a, b, c in zip(exact[::3], exact[1::3], exact[2::3], strict=True)]
    close(run({"sdmgrad": settings}, batches), expected)


def test_the_weights_are_not_all_the_same_where_they_are_compared():
    for spec in ("modo", "sdmgrad"):
        balancer, state = make("balance", spec), None
        for grads in batches_of("five", 12):
            _, state = balancer(state, point(grads))
        w = torch.tensor([v for k, v in state.items() if k.startswith("weight:")]) / 5
        assert w.sum() == pytest.approx(1) and w.max() - w.min() > 0.01


def test_a_batch_does_not_meet_itself():
    """Two batches whose gradients are opposed: the estimate of |mean gradient|^2 is negative, so the task's weight rises."""
    g = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    (found,) = run({"modo": {"gamma": 0.01, "rho": 0.0}}, [g, g * torch.tensor([[-0.5], [1.0]])])
    # w - 0.01 (-2 w_1, 1 w_2) = (0.51, 0.495), less 0.0025 each; the mean of both batches is (0.5, 0) and (0, 1)
    torch.testing.assert_close(found, torch.tensor([0.5 * 0.5075, 0.4925]))


def test_tasks_that_meet_others_have_batches_of_their_own():
    """Of four tasks two by two: a direction where both of a step have another batch behind them."""
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    balancer, state, moved = make("balance", {"modo": {"gamma": 1e-9, "rho": 0.0}}), None, []
    for here in ([0, 1], [2, 3], [0, 2], [1, 3], [0, 1], [0, 2]):
        direction, state = balancer(state, point(rows[here], [NAMES[i] for i in here]))
        moved.append(direction is not None)
        if direction is not None:
            torch.testing.assert_close(direction, rows[here].mean(0))
    assert moved == [False, False, True, True, False, False]
    # the last step's 2 had none behind it; 0 keeps its later batch, so that both go at their next
    assert {k: v.shape[0] for k, v in state.items() if k.startswith("sample:")} == {"sample:a": 1, "sample:b": 1, "sample:c": 1}
    assert balancer(state, point(rows[[0, 2]], ["a", "c"]))[0] is not None


def test_a_task_that_was_not_met_begins_even():
    """Weights of 0.7 and 0.3 among two count 1.4 and 0.6 among any number; who is new counts 1."""
    kept = {
        "weight:a": 1.4,
        "weight:b": 0.6,
        "sample:a": torch.ones(1, 1),
        "sample:b": torch.ones(1, 1),
        "sample:c": torch.ones(1, 1),
    }
    grads = torch.tensor([[1.0], [10.0], [100.0]])
    direction, _ = make("balance", {"modo": {"gamma": 1e-9}})(kept, point(grads, NAMES))
    mean = (grads + 1) / 2
    torch.testing.assert_close(direction, torch.tensor([1.4, 0.6, 1.0]) / 3 @ mean)


def test_the_nearest_point_of_the_simplex():
    close([simplex(torch.tensor([0.2, 0.3, 0.5])), simplex(torch.tensor([2.0, -1.0, 1.5]))],
          [torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.75, 0.0, 0.25])])  # fmt: skip
    assert simplex(torch.tensor([-1e20, 3e20])).tolist() == [0, 1]  # where y - c would be 0 for all
    y = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    project = jd.MoDoWeighting.forward.__globals__["project_onto_simplex"]
    close([simplex(row) for row in y], [project(row) for row in y])


def test_settings_out_of_range():
    for spec in ({"modo": {"gamma": 0}}, {"modo": {"batches": 4}}, {"sdmgrad": {"momentum": 1.0}}, {"sdmgrad": {"n_iter": 0}}):
        with pytest.raises(InputError, match="got"):
            make("balance", spec)


@pytest.mark.parametrize("spec", ["modo", {"sdmgrad": {"n_iter": 3}}, {"crmogm": {"weighting": "pcgrad"}}])
def test_a_killed_training_ends_with_the_same_bits(spec, tmp_path):
    """Also where a pass ends between the batches of one direction."""
    made, jobs = trainer(tmp_path / "a", "classify", "pair")
    theta, _ = share(made, jobs, 4, balancer(spec), "k")
    assert any(not torch.equal(t, begun) for t, begun in zip(theta.values(), start(made).values(), strict=True))

    def told(done: int, of: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    again, same_jobs = trainer(tmp_path / "b", "classify", "pair")
    with pytest.raises(KeyboardInterrupt):
        share(again, same_jobs, 4, balancer(spec), "k", told)
    rest, _ = trainer(tmp_path / "b", "classify", "pair")
    found, _ = share(rest, same_jobs, 4, balancer(spec), "k")
    assert all(torch.equal(found[n], theta[n]) for n in theta)
