import pytest
import torch
from laws._nasty import ROWS, close
from peft.utils.merge_utils import ties as theirs

from anabranch.core.names import make


def test_by_hand():
    rows = torch.tensor([[4.0, -3.0, 0.1, 1.0, 2.0], [2.0, 1.0, -0.2, -3.0, 2.5], [-1.0, -2.0, 0.3, 2.5, 0.0]])
    # of five numbers three stay: 4 -3 2 | 2 -3 2.5 | -1 -2 2.5; their sums 6 -5 0 -.5 4.5 elect the signs
    want = [3.0, -2.5, 0.0, -3.0, 2.25]
    assert make("merge", {"ties": {"density": 0.6}})(rows).tolist() == want
    assert make("merge", {"ties": {"density": 0.6, "scale": 2}})(rows).tolist() == [2 * w for w in want]
    assert make("merge", {"ties": {"density": 0.01}})(rows).tolist() == [4.0, 0.0, 0.0, -3.0, 0.0]  # at least one a task


@pytest.mark.parametrize("density", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("t", [1, 2, 5])
def test_against_peft(density, t):
    rows = torch.randn(t, 6, 8, generator=torch.Generator().manual_seed(t))
    close(make("merge", {"ties": {"density": density}})(rows), theirs(list(rows), torch.ones(t), density))


def test_one_threshold_for_the_whole_model_where_it_is_given():
    rows = torch.tensor([[1.0, -2.0, 3.0], [4.0, 0.5, -0.5]])
    got = make("merge", "ties")(rows, None, {"threshold": torch.tensor([2.0, 5.0])})
    assert got.tolist() == [0, -2, 3]


@pytest.mark.parametrize("name", ROWS)
def test_a_sign_is_elected_never_averaged(name):
    rows = ROWS[name]
    got = make("merge", {"ties": {"density": 1.0}})(rows)
    total = rows.sum(0)
    assert torch.equal(got.sign(), total.sign() * (got != 0))
    assert (got.abs() <= rows.abs().amax(0) * (1 + 1e-6)).all()
