import torch
from laws._nasty import close

from anabranch.core.names import make


def test_who_moved_further_counts_more():
    rows = torch.tensor([[3.0, 4.0], [0.0, 15.0]])  # norms 5 and 15
    close(make("merge", "deviation_soup")(rows), 0.25 * rows[0] + 0.75 * rows[1])


def test_a_checkpoint_that_did_not_move_is_left_out():
    rows = torch.randn(3, 4, 5)
    rows[1] = 0
    found = make("merge", "deviation_soup")(rows)
    close(found, make("merge", "deviation_soup")(rows[[0, 2]]))
    assert found.norm() > make("merge", "mean")(rows).norm()


def test_like_deviations_are_the_uniform_soup():
    rows = torch.nn.functional.normalize(torch.randn(4, 30), dim=1)
    close(make("merge", "deviation_soup")(rows), rows.mean(0))
