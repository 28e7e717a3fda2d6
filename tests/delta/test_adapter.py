"""The bottleneck by hand, and where it sits."""

import torch
from laws._nasty import backbone, bank, batch, close, run
from torch.nn.functional import relu

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make


def test_by_hand():
    adapter = make("delta", {"adapter": {"size": 2}})
    p = {"down": torch.tensor([[1.0, -1.0], [1.0, 1.0]]), "up": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    at = At(torch.zeros(2, 5), torch.tensor([[1.0, 2.0], [-3.0, 1.0]]), torch.ones(2, dtype=torch.bool))
    assert adapter.apply(p, at).tolist() == [[6.0, 10.0], [12.0, 16.0]]


def test_behind_both_sublayers_before_the_residual():
    f, inputs = backbone("bert"), batch("bert", rows=1)
    made = bank(f, "adapter", at=("attention.out[-1:]", "mlp.out[-1:]"))
    p, q = made.take(3).values()
    with torch.no_grad():
        block = f.encoder.layer[1]
        h = f.encoder.layer[0](f.embeddings(inputs["input_ids"]))
        y = block.attention.output.dense(block.attention.self(h)[0])
        h = block.attention.output.LayerNorm(h + y + relu(y @ p["down"]) @ p["up"])
        y = block.output.dense(block.intermediate(h))
        h = block.output.LayerNorm(h + y + relu(y @ q["down"]) @ q["up"])
        close(run(Adapted(f, [made]), inputs, [3]), h)
