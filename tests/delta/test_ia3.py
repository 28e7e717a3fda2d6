"""(IA)^3 by hand and against peft."""

import copy

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, real, run
from peft import IA3Config, get_peft_model

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make


def test_by_hand():
    ia3, mask = make("delta", "ia3"), torch.ones(1, dtype=torch.bool)
    W, b = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([1.0, 1.0, 1.0])
    x = torch.tensor([[1.0, -1.0]])
    at = At(x, x @ W.T + b, mask, W, b)
    outer, inner = {"outer": torch.tensor([1.0, 0.0, -1.0])}, {"inner": torch.tensor([2.0, 0.0])}
    assert ia3.apply(outer, at).tolist() == [[0.0, 0.0, 0.0]]  # y is 0 0 0 for this x
    at = at._replace(y=torch.tensor([[2.0, 3.0, 4.0]]))
    assert ia3.apply(outer, at).tolist() == [[2.0, 0.0, -4.0]]
    assert ia3.apply(inner, at).tolist() == [[2.0, 6.0, 10.0]]
    assert [t.tolist() for t in ia3.weight(outer, W, b)] == [[[1, 2], [0, 0], [-5, -6]], [1, 0, -1]]
    dW, db = ia3.weight(inner, W, b)
    assert dW.tolist() == [[2, 0], [6, 0], [10, 0]] and db is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
@pytest.mark.parametrize(
    ("name", "modules", "inner"),
    [
        ("bert", r".*(self\.(key|value)|layer\.\d\.output\.dense)", r".*layer\.\d\.output\.dense"),
        ("llama", ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    ],
)
def test_against_peft(name, modules, inner):
    f, inputs = backbone(name), batch(name)
    theirs = get_peft_model(copy.deepcopy(f), IA3Config(target_modules=modules, feedforward_modules=inner)).eval()
    ours = bank(f, "ia3", slots=1)
    layers = {n.removeprefix("base_model.model."): m for n, m in theirs.named_modules() if hasattr(m, "ia3_l")}
    assert sorted(layers) == sorted(s.name for s in ours.sites)
    for site in ours.sites:
        (s,) = ours.take(1)[site.key].values()
        scale = layers[site.name].ia3_l["default"]
        scale.data = (1 + s).view_as(scale)
    with torch.no_grad():
        close(
            real(inputs, run(Adapted(f, [ours]), inputs, [1] * 5)),
            real(inputs, theirs(**inputs).last_hidden_state),
        )
