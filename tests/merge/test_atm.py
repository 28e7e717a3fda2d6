from types import SimpleNamespace

import pytest
from merge._toy import bank, body, close, sites, trees, vector

from anabranch.core.fold import changes
from anabranch.core.names import make
from anabranch.errors import InputError

F = body(3, 3, 2)
TARGETS = trees(F, 3)
CALLS: list = []


def train(delta, base, share, steps=20):
    """Gradient descent on |D - target|^2 / 2 from the base, rate 0.1, a share of 20 steps: D - target shrinks by 0.9 each."""
    CALLS.append((delta, share))
    left = 1 - 0.9 ** round(steps * share)
    start = base or {k: {n: 0 * t for n, t in p.items()} for k, p in TARGETS[0].items()}
    return bank(F, [{k: {n: left * (t - start[k][n]) for n, t in p.items()} for k, p in tree.items()} for tree in TARGETS])


def atm(**settings):
    CALLS.clear()
    made = make("merge", {"atm": settings})(train, SimpleNamespace(f=F), ["a", "b", "c"])
    return vector({k: {"W": c[0], "b": c[1]} for k, c in changes(F, made, 1).items()}), made


@pytest.mark.parametrize("rounds", [1, 2, 4, 20])
def test_with_the_mean_it_is_joint_descent(rounds):
    """Of quadratic losses every number of rounds ends where 20 steps on the mean loss end."""
    got, made = atm(rounds=rounds)
    mean = sum(vector(tree) for tree in TARGETS) / 3
    close(got, (1 - 0.9**20) * mean)
    assert len(made) == 1 and [share for _, share in CALLS] == [1 / rounds] * rounds


def test_one_round_is_the_merge_of_what_was_tuned():
    tuned = [(1 - 0.9**20) * vector(tree) for tree in TARGETS]
    close(atm(rounds=1, merge={"task_arithmetic": {"scale": 0.4}})[0], 0.4 * sum(tuned))
    close(atm(rounds=1, scale=0.5)[0], 0.5 * sum(tuned) / 3)
    assert CALLS[0][0] == "dense" and atm(rounds=1, delta={"lora": {"rank": 2}}) and CALLS[0][0] == {"lora": {"rank": 2}}


def test_more_rounds_of_task_arithmetic_go_where_one_round_cannot():
    """alpha / t with alpha = t: one round overshoots to the sum, many short ones settle at the mean."""
    mean = sum(vector(tree) for tree in TARGETS) / 3
    spec = {"task_arithmetic": {"scale": 1.0}}
    one, many = (atm(rounds=r, merge=spec)[0] for r in (1, 20))
    assert (many - mean).norm() < 0.05 * mean.norm() < (one - mean).norm()
    with pytest.raises(InputError, match="at least 2"):
        make("merge", "atm")(train, SimpleNamespace(f=F), ["a"])
    assert len(sites(F)) == 2
