import pytest
import torch
from laws._nasty import close

from anabranch.core.names import make
from anabranch.errors import InputError

ROWS = torch.tensor([[1.0, 2.0, 0.0, 1.0], [1.0, 0.0, 0.1, -0.9], [1.0, 0.0, 0.0, 0.1]])


def consensus(**settings):
    return make("merge", {"consensus": {"scale": 1.0} | settings})(ROWS)


def test_by_hand():
    # the sum is 3 2 .1 .2; |d_t| > lambda |sum - d_t| holds, at lambda = .4, for tasks:
    #   3: 1 > .8 for all three;   2: only task 1 (0 > .8 is false);   .1: only task 2;   .2: 1 > .32, .9 > .44, .1 > .04
    close(consensus(), torch.tensor([3.0, 0.0, 0.0, 0.2]))
    close(consensus(least=1), torch.tensor([3.0, 2.0, 0.1, 0.2]))
    close(consensus(least=3), torch.tensor([3.0, 0.0, 0.0, 0.2]))
    close(consensus(scale=0.5), torch.tensor([1.5, 0.0, 0.0, 0.1]))
    close(consensus(threshold=0.6), torch.tensor([0.0, 0.0, 0.0, 0.2]))  # 1 > 1.2 no longer holds


def test_what_keeps_nothing_is_refused():
    with pytest.raises(InputError, match="consensus with least: 4 merges at least 4 tasks, got 3: it would keep nothing"):
        consensus(least=4)
    for least in (0, 2):
        with pytest.raises(InputError, match=f"least: {least} merges at least 2 tasks, got 1"):
            make("merge", {"consensus": {"least": least}})(ROWS[:1])


@pytest.mark.parametrize("merge", ["task_arithmetic", "ties"])
def test_none_dropped_is_the_merge_itself(merge):
    settings = {} if merge == "ties" else {"scale": 1.0}
    close(consensus(least=0, merge=merge), make("merge", {merge: settings})(ROWS))
