import torch
from laws._nasty import backbone, bank, batch, close, run

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make


def test_it_is_the_map_by_hand():
    y = torch.randn(4, 6)
    at = At(y, y, torch.ones(4, dtype=torch.bool))
    r = torch.randn(6, 6)
    close(y + make("delta", "alignment").apply({"r": r}, at), y @ (torch.eye(6) + r))
    a, b = torch.randn(6, 2), torch.randn(2, 6)
    close(make("delta", {"alignment": {"rank": 2}}).apply({"a": a, "b": b}, at), y @ (a @ b))


def test_it_undoes_a_rotation_of_the_embeddings():
    """f with rotated embeddings answers as f does, once the map turns them back."""
    f = backbone("bert")
    q = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q
    inputs = batch("bert", 2)
    made = bank(f, "alignment", slots=2)
    key = made.sites[0].key
    turn, back = made.take(1), made.take(2)
    turn[key]["r"], back[key]["r"] = q - torch.eye(32), q.mT - torch.eye(32)
    for slot, tree in ((1, turn), (2, back)):
        for name, row in made.flat(tree).items():
            made.tables[name].data[slot] = row
    second = bank(f, "alignment", slots=2)
    second.tables, second.stage = made.tables, 1
    twice = Adapted(f, [made, second])
    from anabranch.core.route import Route

    both = twice(inputs, [Route.to([1, 1]), Route.to([2, 2])]).last_hidden_state
    close(both, f(**inputs).last_hidden_state, 1e-4)
    assert not torch.allclose(run(Adapted(f, [made]), inputs, [1, 1]), f(**inputs).last_hidden_state, atol=1e-2)
