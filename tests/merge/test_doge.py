import torch
from laws._nasty import close

from anabranch.core.names import make
from anabranch.merge.doge import correction, shared

rng = torch.Generator().manual_seed(0)
ROWS = torch.randn(3, 6, 5, generator=rng) * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)


def objective(d, share, e):
    """The paper's loss, as written: one task and row after the other."""
    total = 0
    for j in range(len(d)):
        for row in range(d.shape[1]):
            gap = sum(d[j, row] * (d[j, row] - sum(share[t] * (d[t, row] + e[row]) for t in range(len(d)))))
            total = total + gap**2
    return total


def test_the_first_step_is_the_gradient_of_the_objective_by_autograd():
    share = torch.tensor([0.3, 0.2, 0.5])
    e = torch.zeros(6, 5, requires_grad=True)
    (g,) = torch.autograd.grad(objective(ROWS, share, e), e)
    got = correction(ROWS, share, torch.zeros(6, 0), 1, 0.01)  # Adam's first step is lr times the sign
    close(got, -0.01 * g.sign())


def test_the_correction_lowers_the_objective_and_leaves_the_shared_space():
    share, S = torch.tensor([0.3, 0.2, 0.5]), shared(ROWS, 2)
    assert S.shape == (6, 2)
    close(S.T @ S, torch.eye(2))
    e = correction(ROWS, share, torch.zeros(6, 0), 300, 0.01)
    assert objective(ROWS, share, e) < 0.2 * objective(ROWS, share, 0 * e)
    first = correction(ROWS, share, torch.eye(6)[:, :2], 5, 0.01)
    assert first[:2].abs().max() < 1e-6 < first[2:].abs().max()  # a space of whole rows: nothing moves in it


def test_the_shared_space_is_that_of_common_directions():
    """Two tasks that share their strongest left direction: it is the top of the stack."""
    q = torch.linalg.qr(torch.randn(6, 6, generator=rng)).Q
    rows = torch.stack([5 * torch.outer(q[:, 0], q[i]) + torch.outer(q[:, i], q[0]) for i in (1, 2)])
    S = shared(rows, 6)
    close((S.T @ q[:, 0]).abs(), torch.ones(1))
    assert shared(rows, 0).shape == (6, 0) and shared(rows, 7).shape == (6, 0)


def test_one_step_by_hand():
    rows = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # lambda_1 = 1 / 5, lambda_2 = 0 (no such task); size = rms = sqrt(25 / 8); the residual is d - d/5 = 4/5 d;
    # so the correction wants to grow entries 3 and 4: + lr * rms each, and the largest half of d stays: both
    got = make("merge", {"doge": {"eta": 1.0, "subspace": 0, "density": 0.5, "steps": 1, "lr": 0.1}})(rows)
    up = 0.1 * (25 / 8) ** 0.5
    close(got, torch.tensor([[3 + up, 0.0], [0.0, 4 + up]]) / 5)


def test_without_steps_that_move_it_is_the_trimmed_sum_of_unit_lengths():
    got = make("merge", {"doge": {"steps": 1, "lr": 1e-9, "density": 1.0, "eta": 0.5}})(ROWS)
    close(got, sum(0.5 * d / d.norm() for d in ROWS), 1e-4)
    for size in (1e-10, 1e10):  # numbers whose fourth powers do not fit
        far = make("merge", {"doge": {"steps": 3, "density": 1.0}})(size * ROWS)
        assert far.isfinite().all() and 0.05 < far.norm() < 0.5
    assert make("merge", "doge")(torch.zeros(2, 3, 3)).abs().max() == 0
    close(make("merge", "doge")(torch.tensor([[1.0, 3.0], [3.0, 5.0]])), torch.tensor([2.0, 4.0]))  # no matrix: the mean
