"""One budget, one pick: exact sizes, ties, and any order of items."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anabranch.core.score import budget, kept, pick
from anabranch.errors import InputError


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_min=True))
def test_a_share_is_that_many_and_never_none(n, share):
    size = budget(n, share)
    assert 1 <= size <= n and (abs(size - n * share) <= 0.5 or size == 1)


@pytest.mark.parametrize(
    ("share", "hint"), [(0, "got 0"), (-0.1, "got -0.1"), (20, "for 20 per cent pass 0.2"), (101, "got 101$")]
)
def test_a_share_out_of_range_is_answered_with_what_to_type(share, hint):
    with pytest.raises(InputError, match=hint):
        budget(10, share)


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=40), st.data())
def test_the_highest_are_picked_whatever_their_order(values, data):
    score = torch.tensor(values)
    size = data.draw(st.integers(1, len(values)))
    ids = pick(score, size).tolist()
    assert len(set(ids)) == size and ids == sorted(ids)
    assert sorted(score[ids].tolist()) == sorted(score.tolist())[len(values) - size :]
    order = torch.tensor(data.draw(st.permutations(range(len(values)))))
    shuffled = pick(score[order], size)
    assert sorted(score[order][shuffled].tolist()) == sorted(score[ids].tolist())


def test_of_equals_the_earlier_stay():
    assert pick(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]
    assert pick(torch.zeros(1000), 4).tolist() == [0, 1, 2, 3]
    assert pick(torch.tensor([math.inf, -math.inf, 0.0]), 2).tolist() == [0, 2]


@pytest.mark.parametrize(("score", "size"), [([1.0, 2.0], 0), ([1.0, 2.0], 3), ([1.0], -1), ([], 1)])
def test_a_budget_beyond_the_items_is_refused(score, size):
    with pytest.raises(InputError, match=f"between 1 and the {len(score)} items, got {size}"):
        pick(torch.tensor(score), size)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="NaN"):
        pick(torch.tensor([1.0, math.nan]), 1)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1, exclude_min=True))
def test_a_mask_keeps_exactly_the_budget(rows, columns, share):
    score = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    mask = kept(score, share)
    assert mask.shape == score.shape and mask.dtype is torch.bool and int(mask.sum()) == budget(rows * columns, share)
    assert mask.all() or score[mask].min() >= score[~mask].max()
