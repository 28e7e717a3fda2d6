"""LoFiT: both steps by hand, the heads it keeps, and what is stored."""

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, loaded, real, run

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.fold import fold
from anabranch.core.names import make
from anabranch.core.site import find
from anabranch.errors import InputError

W = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
SCALE, OFFSET = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])


def params(*state: int):
    return {"scale": SCALE, "offset": OFFSET, "state": torch.tensor(state, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("state", "want"),
    [
        ((2, 2), [1 * 1 + 2 * 3 * 1.0, 2 * 1 - 4 * 2.0]),  # every number of x = [1 1 1 2] scaled
        ((3, 0), [5.0, 6.0]),  # an offset at the first head
        ((0, 3), [14.0, -8.0]),
        ((1, 1), [19.0, -2.0]),
        ((0, 0), [0.0, 0.0]),
    ],
)
def test_by_hand(state, want):
    lofit, x = make("delta", {"lofit": {"width": 2}}), torch.tensor([[1.0, 1.0, 1.0, 2.0]])
    p, at = params(*state), At(x, x @ W.T, torch.ones(1, dtype=torch.bool), W)
    for q in (p, lofit.freeze(p)):
        assert lofit.apply(q, at).tolist() == [want]
        dW, db = lofit.weight(q, W, None)
        assert (x @ dW.T + db).tolist() == [want]
    assert sum(t.numel() for t in lofit.freeze(p).values()) == 4 + 2


def test_the_penalty_is_that_of_acting_scales():
    lofit, none = make("delta", {"lofit": {"width": 2, "l1": 0.5}}), torch.zeros(0)
    at = At(none, none, none)
    assert lofit.penalty(params(2, 2), at, none).item() == 5.0 and lofit.penalty(params(3, 0), at, none).item() == 0.0


def learn(lofit, own, steps, grads):
    """Plain gradient steps as a trainer takes them."""
    states = []
    for i in range(1, steps + 1):
        own, g = lofit.refine(own, {s: {n: grads[s][n].clone() for n in ("scale", "offset")} for s in own}, i / steps)
        own = {s: {n: t - 0.1 * g[s][n] if n in g[s] else t for n, t in p.items()} for s, p in own.items()}
        states.append(torch.cat([p["state"] for p in own.values()]).tolist())
    return own, states


def test_scales_first_then_offsets_at_the_heads_of_the_largest_scales_anywhere():
    lofit = make("delta", {"lofit": {"width": 2, "heads": 0.5, "select": 0.4}})
    fresh = {"scale": torch.zeros(2, 2), "offset": torch.zeros(2, 2), "state": torch.tensor([1, 0], dtype=torch.uint8)}
    grads = {"low": torch.tensor([[1.0, 0.0], [3.0, 0.0]]), "high": torch.tensor([[0.0, -2.0], [0.1, 0.1]])}
    own, states = learn(
        lofit, {"low": dict(fresh), "high": dict(fresh)}, 10, {s: {"scale": g, "offset": g} for s, g in grads.items()}
    )
    assert states[:3] == [[2, 2, 2, 2]] * 3 and states[3:] == [[0, 3, 3, 0]] * 7
    acting = {s: lofit.moves(p) for s, p in own.items()}
    assert not any(scale.any() for scale, _ in acting.values())
    close(acting["low"][1], torch.tensor([0.0, 0.0, 6 * -0.3, 0.0]))  # steps 5 to 10; A is thrown away
    close(acting["high"][1], torch.tensor([0.0, 6 * 0.2, 0.0, 0.0]))


def test_without_selection_the_drawn_heads_stay():
    lofit = make("delta", {"lofit": {"width": 8, "heads": 0.5, "select": 0.0}})
    site = find(backbone("bert"), "attention.out")[0]
    p = lofit.init(site, torch.Generator().manual_seed(0))
    assert sorted(p["state"].tolist()) == [0, 0, 1, 1]
    grad = {"a": {"offset": torch.ones(4, 8), "scale": torch.ones(4, 8)}}
    assert lofit.refine({"a": p}, grad, 1.0) == ({"a": p}, grad)


def test_tuned_it_is_a_change_of_the_projections_biases_alone():
    f, inputs = backbone("bert"), batch("bert")
    made = bank(f, {"lofit": {"width": 8, "heads": 0.25}})
    tree = made.take(1)
    tree[made.sites[0].key]["state"], tree[made.sites[1].key]["state"] = torch.tensor(
        [[0, 3, 0, 3], [0, 0, 0, 0]], dtype=torch.uint8
    )
    state, slot = dict(f.state_dict()), made.add([tree])
    name, offset = made.sites[0].name, tree[made.sites[0].key]["offset"]
    state[f"{name}.bias"] = (
        state[f"{name}.bias"] + state[f"{name}.weight"][:, 8:16] @ offset[1] + state[f"{name}.weight"][:, 24:] @ offset[3]
    )
    with torch.no_grad():
        want = real(inputs, loaded(f, state)(**inputs).last_hidden_state)
        close(real(inputs, run(Adapted(f, [made]), inputs, slot * 5)), want)
        folded = fold(f, [(made, slot[0], 1.0)])
        close(real(inputs, loaded(f, folded)(**inputs).last_hidden_state), want)
    assert all(torch.equal(t, folded[n]) for n, t in f.state_dict().items() if n != f"{name}.bias")


def test_other_layers_are_refused():
    f = backbone("bert")
    with pytest.raises(
        InputError, match="width is f's hidden size / heads and divides the 32 inputs of encoder.layer.0.*, got 5"
    ):
        make("delta", {"lofit": {"width": 5}}).init(find(f, "attention.out")[0], torch.Generator())
    with pytest.raises(
        InputError, match="lofit sits at the layer that reads attention's heads, got .* .a norm.; use at: attention.out"
    ):
        make("delta", "lofit").init(find(f, "norm")[0], torch.Generator())
