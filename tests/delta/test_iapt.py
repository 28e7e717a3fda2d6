"""IAPT: the rational activation, the pooling, the tokens in front of every block."""

import pytest
import torch
from laws._nasty import D, backbone, bank, batch, close, run

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import find, make
from anabranch.core.site import Site
from anabranch.errors import InputError


def test_the_activation_by_hand_and_its_start():
    from anabranch.delta.iapt import P, Q, rational

    p, q = torch.tensor([1.0, 0, 2, 0, 0, 0]), torch.tensor([1.0, 0, 0, -1.0])
    got = rational(torch.tensor([0.0, 1.0, -1.0, 2.0]), p, q)
    close(got, torch.tensor([1.0, 3.0, 1.0, 0.6]), 1e-6)  # the last: 9 / (1 + |2 - 16|)
    z = torch.linspace(-6, 6, 241)
    assert (rational(z, torch.tensor(P), torch.tensor(Q)) - torch.nn.functional.gelu(z)).abs().max() < 0.004


def test_a_prompt_by_hand():
    made = make("delta", {"iapt": {"tokens": 2, "size": 2, "activation": "relu"}})
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [9.0, 9.0, 9.0]])
    p = {"down": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), "pool": torch.tensor([[0.0, 50.0], [0.0, 0.0]]),
         "up": torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]])}  # fmt: skip
    got = made.apply(p, At(x, x, torch.tensor([True, True, False])))
    # the first token takes the mean of both real ones, [.5 1.5], the second the one with the larger first number, [1 0]
    close(got, torch.tensor([[0.5, 3.0, -0.5], [1.0, 0.0, -1.0]]), 1e-6)


@pytest.mark.parametrize(("activation", "f"), [("gelu", torch.nn.functional.gelu), ("relu", torch.relu), ("tanh", torch.tanh)])
def test_every_block_gets_tokens_of_its_own_input(activation, f):
    g = backbone("bert")
    inputs = {"input_ids": batch("bert")["input_ids"][:1], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    made = bank(g, {"iapt": {"tokens": 3, "size": 8, "activation": activation}})
    shared = made.tables["shared"].get(1)[""]
    with torch.no_grad():
        h = g.embeddings(inputs["input_ids"])
        for block, site in zip(g.encoder.layer, made.sites, strict=True):
            low = h[0] @ shared["down"]
            tokens = f((low @ made.take(2)[site.key]["pool"]).softmax(0).T @ low) @ shared["up"]
            h = block(torch.cat([tokens[None], h], 1))[:, 3:]
        close(run(Adapted(g, [made]), inputs, [2]), h)


def test_only_pooling_and_activation_are_a_slots_own():
    made = bank(backbone("bert"), {"iapt": {"size": 8}})
    assert made.tables["own"].n == 2 * (8 * 4 + 6 + 4) and made.tables["shared"].n == 2 * 8 * D


def test_blocks_of_two_widths_cannot_share():
    sites = [Site(f"{d}", "block", 0, "module", d, d) for d in (8, 16)]
    with pytest.raises(InputError, match=r"blocks of one width, got widths \[8, 16\]"):
        find("delta.iapt")().shared(sites, torch.Generator())
