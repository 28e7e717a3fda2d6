"""Prefix tuning: what it hands to the attention, and that attention to it is the gated addition of the unified view."""

import pytest
import torch
from laws._nasty import D, backbone, bank, batch, close, real, run
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import DynamicCache

from anabranch.core.adapt import Adapted
from anabranch.core.delta import At
from anabranch.core.names import make
from anabranch.core.site import Site


def slot(tokens: int):
    prefix, rng = make("delta", {"prefix": {"tokens": tokens}}), torch.Generator().manual_seed(0)
    return prefix, prefix.init(Site("layer", "attention", 0, "module", D, D), rng)


def test_it_gives_keys_and_values():
    prefix, p = slot(3)
    at = At(torch.zeros(5, D), torch.zeros(5, D), torch.ones(5, dtype=torch.bool))
    kv = prefix.apply(p, at)
    assert kv.shape == (2, 3, D) and torch.equal(kv[0], p["keys"]) and torch.equal(kv[1], p["values"])
    assert sum(t.numel() for t in p.values()) == 2 * 3 * D
    assert kv[0].std() > 0.1 and not torch.equal(kv[0], kv[1])


def test_a_prefix_is_a_gated_addition_to_the_head():
    prefix, p = slot(6)
    q, k, v = torch.randn(3, 1, 4, 7, 8, generator=torch.Generator().manual_seed(1))  # [rows, heads, l, head size]
    kv = prefix.apply(p, At(torch.zeros(7, D), torch.zeros(7, D), torch.ones(7, dtype=torch.bool)))
    pk, pv = (t.view(1, 6, 4, 8).transpose(1, 2) for t in kv)
    got = attend(q, torch.cat([pk, k], 2), torch.cat([pv, v], 2))
    on_prefix, on_text = ((q @ t.mT / 8**0.5).exp().sum(-1, keepdim=True) for t in (pk, k))
    mass = on_prefix / (on_prefix + on_text)
    close(got, (1 - mass) * attend(q, k, v) + mass * attend(q, pk, pv), 1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_is_a_cache_of_keys_and_values_that_takes_no_positions(name):
    f, inputs = backbone(name), batch(name)
    made = bank(f, {"prefix": {"tokens": 3}})
    ids, length = torch.tensor([2, 1, 3, 3, 1]), inputs["input_ids"].shape[1]
    cache = DynamicCache(config=f.config)
    for i, site in enumerate(made.sites):
        p = [made.take(slot)[site.key] for slot in ids.tolist()]
        k, v = (torch.stack([q[n] for q in p]).unflatten(-1, (-1, D // 4)).transpose(1, 2) for n in ("keys", "values"))
        cache.update(k, v, i)
    with torch.no_grad():
        longer = torch.cat([torch.ones(5, 3, dtype=torch.long), inputs["attention_mask"]], 1)
        places = torch.arange(length).expand(5, -1)
        theirs = f(inputs["input_ids"], attention_mask=longer, past_key_values=cache, position_ids=places).last_hidden_state
        close(real(inputs, run(Adapted(f, [made]), inputs, ids)), real(inputs, theirs))


def test_mam_is_a_prefix_and_a_parallel_adapter_in_one_pass():
    f, inputs = backbone("bert"), batch("bert", rows=1)
    prefix, beside = bank(f, {"prefix": {"tokens": 3}}), bank(f, {"unified": {"size": 4}})
    with torch.no_grad():
        h = f.embeddings(inputs["input_ids"])
        for i, block in enumerate(f.encoder.layer):
            p, q, own = prefix.take(2)[prefix.sites[i].key], beside.take(2)[beside.sites[i].key], block.attention.self
            heads = [layer(h).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (own.query, own.key, own.value)]
            more = [p[n].unflatten(-1, (4, -1)).transpose(0, 1)[None] for n in ("keys", "values")]
            z = attend(heads[0], *(torch.cat(pair, 2) for pair in zip(more, heads[1:], strict=True)))
            x = block.attention.output(z.transpose(1, 2).flatten(2), h)
            change = 4 * torch.relu(x @ q["down"]) @ q["up"]
            h = block.output.LayerNorm(x + block.output.dense(block.intermediate(x)) + change)
        close(run(Adapted(f, [prefix, beside]), inputs, [2]), h)
