import torch
from merge._toy import body, close, look, trees

from anabranch.core.names import make
from anabranch.merge.surgery import corrected, fit

F = body(6, 8, 8)
TREES = trees(F, 3, size=0.2)


def eye(rows: int = 64):
    """features: the real ones of the small f, for each task's own inputs."""
    made = look(F, TREES)
    xs = torch.randn(3, rows, 6, generator=torch.Generator().manual_seed(2))

    def features(tree, j):
        h = torch.tanh(xs[j] @ (F[0].weight + tree["0"]["W"]).T + F[0].bias + tree["0"]["b"])
        return (h @ (F[2].weight + tree["2"]["W"]).T + F[2].bias + tree["2"]["b"]).detach()

    made.features = features
    return made


def test_the_model_is_the_merge_and_its_features_come_nearer_to_each_expert():
    for merge in ("mean", {"task_arithmetic": {"scale": 0.4}}, "ties"):
        at = eye()
        got = make("merge", {"surgery": {"merge": merge, "lr": 1e-2, "steps": 300}})(TREES, at)
        combine = make("merge", merge)
        for j, tree in enumerate(got):
            for key in "02":
                close(tree[key]["W"], combine(torch.stack([t[key]["W"] for t in TREES])))
            z, own = at.features(tree, j), at.features(TREES[j], j)
            assert (corrected(z, tree[""]) - own).abs().mean() < 0.6 * (z - own).abs().mean()


def test_each_task_has_its_own_correction_of_its_rank():
    got = make("merge", {"surgery": {"rank": 3, "steps": 5}})(TREES, eye())
    assert got[0][""]["down"].shape == (8, 3) and got[0][""]["up"].shape == (3, 8)
    assert not torch.equal(got[0][""]["up"], got[1][""]["up"]) and got[0]["0"] is got[1]["0"]


def test_it_is_an_adapter_on_the_pooled_features():
    p = make("merge", {"surgery": {"rank": 3, "steps": 5}})(TREES, eye())[0][""]
    from anabranch.core.delta import At

    z = torch.randn(4, 8)
    at = At(z, z, torch.ones(4, dtype=torch.bool))
    close(z + make("delta", {"adapter": {"size": 3}}).apply(p, at), corrected(z, p))


def test_the_correction_is_the_paper_s():
    """z - U relu(D z), and it recovers one that is of this form: L1 near zero where least absolute deviations can be."""
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(200, 5, generator=rng)
    D, U = torch.randn(1, 5, generator=rng), torch.randn(5, 1, generator=rng)
    own = z - torch.relu(z @ D.T) @ U.T
    p = fit(z, own, 4, 1500, 1e-2, rng)
    assert (corrected(z, p) - own).abs().mean() < 0.1 * (z - own).abs().mean()
    assert (corrected(z, fit(z, z, 4, 20, 1e-2, rng)) - z).abs().max() == 0  # nothing to correct: the start is kept
