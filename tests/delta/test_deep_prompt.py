"""Deep prompts against the block-by-block loop of the papers."""

import torch
from laws._nasty import backbone, bank, batch, close, run

from anabranch.core.adapt import Adapted


def test_on_images_as_in_visual_prompt_tuning():
    f, inputs = backbone("vit"), batch("vit")
    made = bank(f, {"deep_prompt": {"tokens": 3}})
    with torch.no_grad():
        h = f.embeddings(inputs["pixel_values"])
        for block, site in zip(f.layers, made.sites, strict=True):
            tokens = made.take(2)[site.key]["tokens"].expand(len(h), -1, -1)
            h = block(torch.cat([tokens, h], 1))[:, 3:]
        close(run(Adapted(f, [made]), inputs, [2] * 5), f.layernorm(h))


def test_on_text_from_the_last_block():
    f, inputs = backbone("bert"), batch("bert", rows=2)
    inputs = {"input_ids": inputs["input_ids"], "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    made = bank(f, {"deep_prompt": {"tokens": 4}}, at="block[-1:]")
    with torch.no_grad():
        h = f.encoder.layer[0](f.embeddings(inputs["input_ids"]))
        tokens = torch.stack([made.take(i)[made.sites[0].key]["tokens"] for i in (3, 1)])
        want = f.encoder.layer[1](torch.cat([tokens, h], 1))[:, 4:]
        close(run(Adapted(f, [made]), inputs, [3, 1]), want)


def test_a_causal_text_sees_the_tokens_and_they_do_not_see_it():
    f, inputs = backbone("llama"), batch("llama", rows=1)
    made = bank(f, {"deep_prompt": {"tokens": 2}})
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, -1] += 1
    with torch.no_grad():
        a, b = (run(Adapted(f, [made]), i, [1]) for i in (inputs, other))
    close(a[:, :-1], b[:, :-1])
    assert not torch.allclose(a[:, -1], b[:, -1], atol=1e-3)
