"""Align-LoRA: the distances by hand and against plain loops over pairs; the adapter itself is a LoRA."""

import itertools
import math

import pytest
import torch
from laws._nasty import close

from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.delta.align_lora import VARIANCES

DISTANCES = ("mmd", "kl")


def features(*rows: list[list[float]]) -> At:
    """Rows of tokens; short rows are padded with large numbers that nothing may see."""
    length, d = max(map(len, rows)), len(rows[0][0])
    x = torch.tensor([row + [[99.0] * d] * (length - len(row)) for row in rows])
    mask = torch.tensor([[i < len(row) for i in range(length)] for row in rows])
    return At(x, torch.zeros(len(rows), length, 1), mask)


def penalty(at: At, who: list[int], distance: str, a: torch.Tensor | None = None, align: float = 1.0) -> torch.Tensor:
    delta = make("delta", {"align_lora": {"distance": distance, "align": align}})
    return delta.penalty({"a": torch.eye(at.x.shape[-1]) if a is None else a}, at, torch.tensor(who))


def test_two_tokens_by_hand():
    at = features([[0.0]], [[2.0]])
    want = sum(2 - 2 * math.exp(-4 / (2 * v)) for v in VARIANCES)
    close(penalty(at, [4, 7], "mmd"), torch.tensor(want))
    close(
        penalty(at, [4, 7], "mmd", a=torch.tensor([[0.5]])), torch.tensor(sum(2 - 2 * math.exp(-1 / (2 * v)) for v in VARIANCES))
    )
    close(penalty(at, [4, 7], "mmd", align=0.01), torch.tensor(0.01 * want))


def test_two_gaussians_by_hand():
    at = features([[0.0], [2.0]], [[3.0], [7.0]])  # means 1 and 5, variances 1 and 4
    one = 0.5 * (math.log(4) + 1 / 4 + 16 / 4 - 1)
    two = 0.5 * (-math.log(4) + 4 + 16 - 1)
    close(penalty(at, [0, 1], "kl"), torch.tensor((one + two) / 2), 1e-4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_tasks_that_look_alike_have_no_penalty(distance):
    rows = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).tolist()
    close(penalty(features(*rows, *rows), [0] * 3 + [1] * 3, distance), torch.tensor(0.0), 1e-5)
    close(penalty(features(*rows), [2] * 3, distance), torch.tensor(0.0), 1e-9)
    assert penalty(features(*rows, *(torch.tensor(rows) + 1).tolist()), [0] * 3 + [1] * 3, distance) > 0.1


def test_mmd_is_the_mean_over_pairs_and_places_of_plain_loops():
    rng = torch.Generator().manual_seed(1)
    lengths, who = [4, 2, 3, 4, 1, 3], [0, 0, 1, 1, 2, 1]
    at = features(*(torch.randn(n, 3, generator=rng).tolist() for n in lengths))

    def kernel(i: int, j: int, place: int) -> float:
        far = (at.x[i, place] - at.x[j, place]).square().sum()
        return sum(torch.exp(-far / (2 * v)).item() for v in VARIANCES)

    def mean(first: list[int], second: list[int], place: int) -> float:
        return sum(kernel(i, j, place) for i, j in itertools.product(first, second)) / (len(first) * len(second))

    pairs = []
    for s, t in itertools.combinations(range(3), 2):
        places = []
        for place in range(4):
            S, T = ([i for i in range(6) if who[i] == task and lengths[i] > place] for task in (s, t))
            if S and T:
                places.append(mean(S, S, place) + mean(T, T, place) - 2 * mean(S, T, place))
        pairs.append(sum(places) / len(places))
    close(penalty(at, who, "mmd"), torch.tensor(sum(pairs) / 3), 1e-4)


def test_kl_is_the_mean_over_pairs_of_torchs_own():
    rng = torch.Generator().manual_seed(1)
    lengths, who = [4, 2, 3, 4, 1, 3], [5, 5, 1, 1, 2, 1]  # task 2 has one token: no Gaussian fits it
    at = features(*(torch.randn(n, 3, generator=rng).tolist() for n in lengths))
    five, one = (torch.cat([at.x[i, : lengths[i]] for i in range(6) if who[i] == task]) for task in (5, 1))
    p, q = (torch.distributions.Normal(z.mean(0), z.std(0, correction=0)) for z in (five, one))
    want = (torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)).sum() / 2
    close(penalty(at, who, "kl"), want, 1e-4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_descending_it_aligns_the_tasks(distance):
    rng = torch.Generator().manual_seed(2)
    at = features(*torch.randn(3, 4, 5, generator=rng).tolist(), *(1 + 2 * torch.randn(3, 4, 5, generator=rng)).tolist())
    a = torch.randn(5, 2, generator=rng).requires_grad_()
    before = penalty(at, [0] * 3 + [1] * 3, distance, a)
    (step,) = torch.autograd.grad(before, a)
    assert step.isfinite().all() and penalty(at, [0] * 3 + [1] * 3, distance, a - 1e-2 * step) < before
