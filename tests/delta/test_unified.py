"""The four axes: by hand, the methods that are settings of them, and the block that the scaled parallel adapter changes."""

import math

import pytest
import torch
from laws._nasty import backbone, bank, batch, close, run

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.task.plan import delta_entry

X, Y = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 3.0]])
P = {"down": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "up": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, [4.0, 8.0]),  # 4 relu([1 -1]) U
        ({"form": "linear"}, [-8.0, -8.0]),
        ({"form": "linear", "insertion": "sequential", "scale": 1.0}, [11.0, 16.0]),
        ({"insertion": "sequential", "scale": 0.5}, [5.5, 8.0]),
        ({"composition": "gated", "scale": 1.0}, [-0.5, -0.5]),  # half of [1 2] - [2 3]
    ],
)
def test_by_hand(settings, want):
    p = P | ({"gate": torch.tensor([0.5])} if settings.get("composition") == "gated" else {})
    got = make("delta", {"unified": settings}).apply(p, At(X, Y, torch.ones(1, dtype=torch.bool)))
    assert got.tolist() == [want]


def test_softmax_is_attention_to_learned_keys_and_values():
    got = make("delta", {"unified": {"form": "softmax", "scale": 1.0}}).apply(P, At(X, Y, torch.ones(1, dtype=torch.bool)))
    a = math.exp(1) / (math.exp(1) + math.exp(-1))
    close(got, torch.tensor([[a + 3 * (1 - a), 2 * a + 4 * (1 - a)]]), 1e-6)
    q, k, v = X[None], P["down"].mT[None], P["up"][None]
    close(got[None], torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0), 1e-6)


@pytest.mark.parametrize(
    ("other", "settings", "at", "names"),
    [
        ({"lora": {"rank": 4, "alpha": 6}}, {"form": "linear", "scale": 1.5, "size": 4}, "attention.value", ("a", "b")),
        ({"adapter": {"size": 4}}, {"insertion": "sequential", "scale": 1.0, "size": 4}, "mlp.out", ("down", "up")),
    ],
)
def test_lora_and_the_adapter_are_settings_of_it(other, settings, at, names):
    f, inputs = backbone("bert"), batch("bert")
    theirs, ours = bank(f, other, at=at), bank(f, {"unified": settings}, at=at)
    slots = [
        {s: dict(zip(("down", "up"), (p[n] for n in names), strict=True)) for s, p in theirs.take(i).items()} for i in (1, 2)
    ]
    new = ours.add(slots)
    close(run(Adapted(f, [ours]), inputs, [*new, 0, *new]), run(Adapted(f, [theirs]), inputs, [1, 2, 0, 1, 2]))


def test_by_default_it_runs_beside_the_whole_mlp():
    f, inputs = backbone("bert"), batch("bert", rows=1)
    made = bank(f, {"unified": {"size": 3}})
    with torch.no_grad():
        h = f.embeddings(inputs["input_ids"])
        for block, site in zip(f.encoder.layer, made.sites, strict=True):
            p = made.take(2)[site.key]
            x = block.attention(h)[0]
            inner = block.output.dense(block.intermediate(x)) + 4 * torch.relu(x @ p["down"]) @ p["up"]
            h = block.output.LayerNorm(x + inner)
        close(run(Adapted(f, [made]), inputs, [2]), h)


def test_a_plan_takes_it_and_mam_is_a_list_of_two():
    entries = [delta_entry(e) for e in ({"prefix": {"tokens": 30}}, {"unified": {"size": 64}, "at": "mlp.in->mlp.out"})]
    assert [list(e)[0] for e in entries] == ["prefix", "unified"]
    kinds = [make("delta", {n: s for n, s in e.items() if n != "at"}) for e in entries]
    assert [k.door for k in kinds] == ["attention", "site"] and (kinds[0].tokens, kinds[1].scale) == (30, 4.0)
