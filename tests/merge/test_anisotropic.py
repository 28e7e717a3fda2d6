import pytest
import torch
from merge._toy import body, close, look, trees, vector

from anabranch.core.names import make
from anabranch.errors import InputError

F = body(3, 4, 2)
TREES = trees(F, 2)
QUICK = {"decay": 0.0, "steps": 400, "lr": 0.05}


def learned(eye, **settings):
    return make("merge", {"anisotropic": QUICK | settings})(TREES, eye)


def test_every_tensor_gets_the_coefficients_of_least_squares():
    target = trees(F, 1, seed=5)[0]
    got = learned(look(F, [target]))
    for s, p in got.items():
        for n, t in p.items():
            d = torch.stack([tree[s][n].flatten() for tree in TREES])
            w = torch.linalg.lstsq(d.T, target[s][n].flatten()[:, None]).solution[:, 0]
            close(t.flatten(), w @ d, 2e-3)


def test_one_coefficient_per_task_is_the_fit_of_whole_vectors():
    target = trees(F, 1, seed=5)[0]
    d = torch.stack([vector(tree) for tree in TREES])
    w = torch.linalg.lstsq(d.T, vector(target)[:, None]).solution[:, 0]
    close(vector(learned(look(F, [target]), by="task")), w @ d, 2e-3)


def test_more_parts_reach_more_and_every_part_is_a_multiple():
    target = trees(F, 1, seed=5)[0]
    losses = [look(F, [target]).losses(learned(look(F, [target]), parts=k))[0] for k in (1, 3)]
    assert losses[1] < 0.9 * losses[0]
    one = make("merge", {"anisotropic": QUICK | {"parts": 2, "steps": 3}})(TREES[:1], look(F, [target]))
    for s, p in one.items():
        for n, t in p.items():
            assert len({round(float(x), 4) for x in (t / TREES[0][s][n]).flatten()}) <= 2


def test_without_labels_and_one_per_task():
    targets = trees(F, 2, seed=6)
    free = learned(look(F, targets), objective="entropy")
    close(vector(free), vector(learned(look(F, targets))), 5e-3)  # the toy's entropies have the same minimum
    each = learned(look(F, targets), each=True)
    for j in range(2):
        assert look(F, targets).losses(each[j])[j] < look(F, targets).losses(free)[j]


def test_forgetting_raises_one_loss_and_keeps_the_others():
    targets, zero = trees(F, 2, seed=7), {s: {n: 0 * t for n, t in p.items()} for s, p in TREES[0].items()}
    eye = look(F, [TREES[0], targets[1]])
    before, after = eye.losses(zero), eye.losses(learned(eye, forget=1, control=0.9))
    assert after[0] > 1.05 * before[0] and after[1] <= before[1] / 0.9 + 1e-5
    with pytest.raises(InputError, match="1 to 2"):
        learned(eye, forget=3)


def test_decay_pulls_to_f_and_zero_start_is_f():
    eye = look(F, [trees(F, 1, seed=5)[0]])
    assert vector(make("merge", {"anisotropic": {"steps": 1, "lr": 1e-9}})(TREES, eye)).abs().max() < 1e-6
