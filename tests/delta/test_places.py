"""Where deltas sit: at every kind of place of f each one works, or says where it belongs."""

import pytest
import torch
from laws._nasty import IDS, D, backbone, bank, batch, close, real, row, run

from anabranch.core.adapt import Adapted
from anabranch.core.fold import fold
from anabranch.core.names import every, make
from anabranch.core.site import find
from anabranch.engine.seen import delta_for
from anabranch.errors import InputError

PLACES = {
    "table": "embeddings.word_embeddings",
    "query": "attention.query",
    "out": "attention.out",
    "mlp": "mlp.in",
    "norm": "norm",
    "embedding": "embedding",
    "block": "block",
    "attention": "attention",
    "output": "output",
    "region": "mlp.in->mlp.out",
}
LAYERS, WHOLE = {"query", "out", "mlp"}, {"embedding", "block", "attention", "output"}
WEIGHTS, BESIDE = LAYERS | {"norm", "table"}, LAYERS | WHOLE | {"region"}
SITS = {  # the places of each delta; where it is not it is refused
    "adapter": set(PLACES),
    "affiner": LAYERS,
    "align_lora": BESIDE,
    "alignment": set(PLACES),
    "common_low_rank": WEIGHTS,
    "compacter": set(PLACES),
    "corda": LAYERS,
    "deep_prompt": {"block"},
    "dense": WEIGHTS,
    "embedding_lowrank": {"table", "embedding"},
    "hydra": LAYERS,
    "ia3": BESIDE,
    "iapt": {"block"},
    "id3": WEIGHTS,
    "lofit": {"out"},
    "lora": BESIDE,
    "mask": LAYERS,
    "masked_common": WEIGHTS,
    "offset": set(PLACES),
    "pissa": LAYERS,
    "prefix": {"attention"},
    "prompt": {"embedding"},
    "quantised": WEIGHTS,
    "r_amt": LAYERS,
    "seq_lora": BESIDE,
    "sparse": WEIGHTS,
    "ssf": BESIDE | {"norm"},
    "unified": BESIDE,
}
SMALL = {"lofit": {"width": 8}}  # f's heads


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("delta", every("delta"))
@torch.no_grad()
def test_it_works_there_or_says_where_it_belongs(delta, place):
    f, inputs, spec = backbone("bert"), batch("bert"), {delta: SMALL.get(delta, {})}
    if place not in SITS.get(delta, PLACES):
        with pytest.raises(InputError, match=r" sits at .*, got .* \(.*\); use at: ") as refused:
            bank(f, spec, at=PLACES[place])
        advice = str(refused.value).partition("use at: ")[2]
        assert bank(f, spec, at=advice).sites  # what it tells to type is taken
        return
    try:
        made = bank(f, spec, at=PLACES[place])
    except InputError as refused:
        assert delta not in SITS and "use at: " in str(refused)
        return
    got = run(Adapted(f, [made]), inputs, IDS)
    bare = f(**inputs).last_hidden_state
    assert got.shape == bare.shape and got.isfinite().all()
    close(real(row(inputs, 1), got[1:2]), real(row(inputs, 1), bare[1:2]))  # the row without a slot
    assert (got[0] - bare[0]).abs().max() > 1e-3
    try:
        state = fold(f, [(made, 2, 1.0)])
    except InputError:
        return
    assert all(state[n].shape == t.shape for n, t in f.state_dict().items())


@pytest.mark.parametrize(
    ("delta", "at", "words"),
    [
        (
            "deep_prompt",
            "attention.query",
            r"deep_prompt sits at whole blocks, got .*self.query \(a linear layer\); use at: block",
        ),
        (
            "prefix",
            "attention.query",
            r"a prefix sits at the modules that attend, got .*query \(a linear layer\); use at: attention$",
        ),
        ("prompt", "output", r"a prompt sits at the whole embedding, got output \(all of f\); use at: embedding"),
        ("prompt", "embeddings", r"a prompt sits at the whole embedding, got embeddings \(a module before the blocks\)"),
        ("deep_prompt", "mlp.in->mlp.out", r"got .*intermediate.dense->.*output.dense \(a region\); use at: block"),
        ("prefix", "encoder.layer.1", r"got encoder.layer.1 \(a block\); use at: attention"),
        (
            "lofit",
            "mlp.out",
            r"lofit sits at the layer that reads attention's heads, got .* \(a linear layer\); use at: attention.out",
        ),
        ("align_lora", "norm", r"align_lora sits at linear layers, regions read->write or whole modules, got .* \(a norm\)"),
        (
            {"unified": {"form": "softmax"}},
            "embeddings.word_embeddings",
            r"unified \(parallel\) sits at .*\(an embedding table\)",
        ),
    ],
)
def test_what_is_expected_what_came_and_what_to_type(delta, at, words):
    with pytest.raises(InputError, match=words):
        bank(backbone("bert"), delta, at=at)


@pytest.mark.parametrize(("delta", "at"), [("deep_prompt", "encoder.layer.1"), ("prefix", "encoder.layer.1.attention.self"),
                                           ("embedding_lowrank", "embeddings")])  # fmt: skip
def test_a_path_is_known_by_its_name(delta, at):
    f = backbone("bert")
    assert torch.isfinite(run(Adapted(f, [bank(f, delta, at=at)]), batch("bert"), IDS)).all()


def test_a_sequential_form_sits_where_an_adapter_sits():
    f = backbone("bert")
    made = bank(f, {"unified": {"insertion": "sequential"}}, at=["embeddings.word_embeddings", "norm"])
    assert run(Adapted(f, [made]), batch("bert"), IDS).isfinite().all()


@pytest.mark.parametrize("delta", ["adapter", "lora", "offset"])
def test_heads_that_share_keys_hide_how_wide_the_module_is(delta):
    with pytest.raises(InputError, match=r"got layers.0.self_attn \(a module that attends\); use at: attention.value"):
        bank(backbone("llama"), delta, at="attention")


# ---- sizes


@pytest.mark.parametrize(
    ("spec", "at", "words"),
    [
        ({"lora": {"rank": 33}}, "attention.query", "rank is at most 32 at .*self.query, got 33; use rank: 32"),
        ({"alignment": {"rank": 100}}, "embedding", "rank is at most 32 at embeddings, got 100; use rank: 32"),
        ({"common_low_rank": {"rank": 100}}, "mlp.in", "rank is at most 32 at .*intermediate.dense, got 100; use rank: 32"),
        (
            {"compacter": {"rank": 1000}},
            "mlp.out",
            "rank is at most 6 at .*output.dense, got 1000; use rank: 6",
        ),  # 24 / 4 columns
        ({"unified": {"form": "linear", "size": 5000}}, "mlp.in->mlp.out", "size is at most 32 at .*, got 5000; use size: 32"),
    ],
)
def test_a_rank_that_changes_nothing_more_is_refused(spec, at, words):
    with pytest.raises(InputError, match=words):
        bank(backbone("bert"), spec, at=at)


def test_widths_that_are_no_ranks_may_be_large():
    f = backbone("bert")
    for spec in ({"unified": {"size": 100}}, {"unified": {"form": "softmax", "size": 100}}, {"adapter": {"size": 100}}):
        assert len(bank(f, spec)) == 3
    two = "embeddings.token_type_embeddings"  # two rows: the larger places need the rank
    assert len(bank(f, {"common_low_rank": {"rank": 16}}, at=[two, "mlp.in", "norm"])) == 3


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
def test_heads_are_as_wide_as_those_of_f(name):
    f = backbone(name)
    for spec in ("lofit", {"lofit": {"heads": 0.25}}, {"lofit": {"width": D // 4}}):
        assert delta_for(f, spec).width == D // 4
    assert delta_for(f, {"lofit": {"heads": 0.25}}).heads == 0.25
    for spec in ({"lofit": {"width": 32}}, make("delta", "lofit")):
        with pytest.raises(
            InputError, match="width is that of a head, 8 in .*Model of 4 heads, got 32; leave it out or use width: 8"
        ):
            delta_for(f, spec)
    assert delta_for(f, "lora") == make("delta", "lora")


def test_a_slice_beyond_the_blocks_says_how_many_there_are():
    with pytest.raises(
        InputError, match=r"matches 'attention.query\[9:\]': it has 2 blocks, counted from 0; use at: attention.query\[-1:\]"
    ):
        find(backbone("bert"), "attention.query[9:]")
