import pytest
import torch
from merge._toy import bank, body, close, look, trees

from anabranch.core.adapt import Adapted
from anabranch.core.fold import changes
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.errors import InputError

F = body(5, 6, 4)
TREES = trees(F, 3)


def masked(slots, eye=None, **settings):
    return make("merge", {"tall_masks": settings})(bank(F, slots), F, eye)


@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_every_task_is_the_sum_under_its_own_mask(threshold):
    made = masked(TREES, threshold=threshold)
    for j, tree in enumerate(TREES):
        got = changes(F, made, j + 1)
        for key, p in tree.items():
            for n, t in p.items():
                total = sum(other[key][n] for other in TREES)
                close(got[key]["Wb".index(n)], total * (t.abs() > threshold * (total - t).abs()))


def test_one_number_by_hand():
    one = [{"0": {"W": torch.tensor([[w]]), "b": torch.zeros(1)}} for w in (2.0, -0.5)]
    f = body(1, 1)
    made = make("merge", {"tall_masks": {"threshold": 0.4}})(bank(f, one), f)  # the sum is 1.5; |2| > .4 |-.5|, |-.5| < .4 |2|
    assert [float(changes(f, made, i)["0"][0]) for i in (1, 2)] == [1.5, 0.0]


def test_tasks_that_do_not_overlap_come_back_whole():
    """The paper's premise: where masks are disjoint, one vector and bits are as good as all vectors."""
    g = torch.Generator().manual_seed(0)
    owner = {k: {n: torch.randint(3, t.shape, generator=g) for n, t in p.items()} for k, p in TREES[0].items()}
    apart = [{k: {n: t * (owner[k][n] == j) for n, t in p.items()} for k, p in tree.items()} for j, tree in enumerate(TREES)]
    made = masked(apart, threshold=0.4)
    for j, tree in enumerate(apart):
        for key, (dW, db) in changes(F, made, j + 1).items():
            close(dW, tree[key]["W"])
            close(db, tree[key]["b"])


def test_one_vector_and_one_bit_a_number():
    made, n = masked(TREES), sum(t.numel() for p in TREES[0].values() for t in p.values())
    assert made.tables["shared"].n == n and made.tables["own"].n == 0
    assert made.tables["fixed.uint8"].n == sum(-(-sum(t.numel() for t in p.values()) // 8) for p in TREES[0].values())
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    got = Adapted(F, [made])({"input": x[:, None]}, Route.to([1, 2, 0, 3]))[:, 0]
    for i, slot in enumerate((1, 2, 0, 3)):
        change = changes(F, made, slot) if slot else {s.key: (0, 0) for s in made.sites}
        h = x[i]
        for m, key in enumerate("02"):
            h = h @ (F[int(key)].weight + change[key][0]).T + F[int(key)].bias + change[key][1]
            h = torch.tanh(h) if m == 0 else h
        close(got[i], h)


def test_each_threshold_is_the_one_of_the_lowest_validation_loss():
    eye = look(F, TREES)
    made = masked(TREES, eye)
    losses = {
        g: [float(eye.losses(_tree(masked(TREES, threshold=g), j + 1))[j]) for j in range(3)] for g in (0.2, 0.3, 0.4, 0.5, 0.6)
    }
    for j in range(3):
        assert float(eye.losses(_tree(made, j + 1))[j]) == pytest.approx(min(found[j] for found in losses.values()), rel=1e-5)
    with pytest.raises(InputError, match="at least 2 tasks"):
        masked(TREES[:1])


def _tree(made, slot):
    return {key: {"W": dW, "b": db} for key, (dW, db) in changes(F, made, slot).items()}
