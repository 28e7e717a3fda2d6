import torch
from laws._nasty import close
from peft.utils.merge_utils import task_arithmetic as theirs

from anabranch.core.names import make


def test_by_hand_and_against_peft():
    rows = torch.tensor([[1.0, 2.0], [3.0, -2.0], [0.5, 0.0]])
    assert make("merge", {"task_arithmetic": {"scale": 0.5}})(rows).tolist() == [2.25, 0.0]
    rows = torch.randn(4, 3, 5)
    close(make("merge", {"task_arithmetic": {"scale": 0.3}})(rows), theirs(list(rows), torch.full((4,), 0.3)))
    close(make("merge", "task_arithmetic")(rows), 0.4 * rows.sum(0))
