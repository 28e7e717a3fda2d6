"""Prefix tuning: what it hands to the attention, and that attention to it is the gated addition of the unified view."""

import torch
from laws._nasty import D, close
from torch.nn.functional import scaled_dot_product_attention as attend

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
