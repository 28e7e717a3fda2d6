import pytest
import torch
from merge._toy import body, close, look, trees

from anabranch.core.names import make

F = body(3, 4, 4)
TREES = trees(F, 2)


def learned(eye, **settings):
    return make("merge", {"scalearn": {"drop": 0.0, "steps": 500, "lr": 0.05} | settings})(TREES, eye)


@pytest.mark.parametrize("scales", ["vector", "scalar"])
@pytest.mark.parametrize("shared", [False, True])
def test_each_level_is_least_squares_over_the_outputs_that_it_ties(scales, shared):
    targets = trees(F, 2, seed=5)
    got = learned(look(F, targets), scales=scales, shared=shared)
    assert len(got) == 2
    both = [[torch.cat([tree[s]["W"], tree[s]["b"][:, None]], 1) for s in "02"] for tree in (*TREES, *targets)]  # [4, d_in + 1]
    for j in range(2):
        a, b, y = both[0], both[1], both[2 + j]
        groups = [[s] for s in (0, 1)] if not shared else [[0, 1]]
        for group in groups:
            for row in range(4) if scales == "vector" else [slice(None)]:
                x = torch.stack([torch.cat([m[s][row].flatten() for s in group]) for m in (a, b)], 1)
                w = torch.linalg.lstsq(x, torch.cat([y[s][row].flatten() for s in group])[:, None]).solution[:, 0]
                for s in group:
                    close(got[j]["02"[s]]["W"][row], w[0] * a[s][row, :-1] + w[1] * b[s][row, :-1], 3e-3)
                    close(got[j]["02"[s]]["b"][row], w[0] * a[s][row, -1] + w[1] * b[s][row, -1], 3e-3)


def test_a_scaled_delta_is_a_scaled_output():
    """The row's own words: omega on the outputs of the frozen source deltas."""
    got = learned(look(F, trees(F, 1, seed=5)), steps=5)[0]
    ratio = torch.linalg.lstsq(torch.stack([TREES[0]["0"]["W"][1], TREES[1]["0"]["W"][1]], 1), got["0"]["W"][1][:, None])
    x = torch.randn(7, 3)
    outs = [x @ tree["0"]["W"].T + tree["0"]["b"] for tree in TREES]
    w = ratio.solution[:, 0]
    close((x @ got["0"]["W"].T + got["0"]["b"])[:, 1], w[0] * outs[0][:, 1] + w[1] * outs[1][:, 1], 1e-4)


def test_it_starts_from_the_mean_and_dropout_repeats_under_its_seed():
    eye = look(F, trees(F, 1, seed=5))
    start = learned(eye, steps=1, lr=1e-9)[0]
    close(start["0"]["W"], (TREES[0]["0"]["W"] + TREES[1]["0"]["W"]) / 2, 3e-3)
    a, b = (learned(look(F, trees(F, 1, seed=5)), drop=0.3, steps=20)[0] for _ in range(2))
    assert torch.equal(a["0"]["W"], b["0"]["W"])
