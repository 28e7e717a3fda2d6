"""SSF by hand, and the same as other scales and shifts of f's own layers."""

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, loaded, real, run

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.fold import fold
from anabranch.core.names import make
from anabranch.errors import InputError


def test_by_hand():
    ssf, p = make("delta", "ssf"), {"s": torch.tensor([1.0, -0.5]), "d": torch.tensor([0.0, 3.0])}
    W, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0])
    at = At(torch.zeros(1, 2), torch.tensor([[4.0, 6.0]]), torch.ones(1, dtype=torch.bool))
    assert ssf.apply(p, at).tolist() == [[4, 0]]  # y becomes 8 and 6: twice, and half plus 3
    assert [t.tolist() for t in ssf.weight(p, W, b)] == [[[1, 2], [-1.5, -2]], [10, -7]]
    assert [t.tolist() for t in ssf.weight(p, b, b)] == [[10, -10], [10, -7]]  # a norm


def test_it_is_another_scale_and_shift_of_each_layer():
    f, inputs = backbone("bert"), batch("bert")
    made = bank(f, "ssf")
    state = dict(f.state_dict())
    for site in made.sites:
        p = made.take(2)[site.key]
        W, b = f"{site.name}.weight", f"{site.name}.bias"
        scale = 1 + p["s"]
        state[W] = state[W] * (scale if site.kind == "norm" else scale[:, None])
        state[b] = scale * state[b] + p["d"]
    assert len(made.sites) == 2 * 6 + 5 and made.tables["own"].n == sum(2 * s.d_out for s in made.sites)
    with torch.no_grad():
        want = real(inputs, loaded(f, state)(**inputs).last_hidden_state)
        close(real(inputs, run(Adapted(f, [made]), inputs, [2] * 5)), want)
        close(real(inputs, loaded(f, fold(f, [(made, 2, 1.0)]))(**inputs).last_hidden_state), want)


def test_behind_a_whole_module_it_runs_and_does_not_fold():
    f, inputs = backbone("bert"), batch("bert")
    made = bank(f, "ssf", at="encoder.layer.1.output")
    with torch.no_grad():
        p, y = made.take(1)[made.sites[0].key], f(**inputs).last_hidden_state
        close(run(Adapted(f, [made]), inputs, [1] * 5), y * (1 + p["s"]) + p["d"])
        with pytest.raises(InputError, match="cannot be folded"):
            fold(f, [(made, 1, 1.0)])
