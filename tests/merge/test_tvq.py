import pytest
import torch
from merge._toy import bank, body, close, trees

from anabranch.core.fold import changes
from anabranch.core.names import make

F = body(16, 16, 16)
TREES = trees(F, 4)


def kept(slots=TREES, **settings):
    return make("merge", {"tvq": settings})(bank(F, slots), F)


def error(made, slots=TREES) -> float:
    got = [changes(F, made, j + 1) for j in range(len(slots))]
    return sum(float((got[j][k][0] - p["W"]).square().sum()) for j, tree in enumerate(slots) for k, p in tree.items()) ** 0.5


def test_by_hand():
    f = body(4, 1)
    one = [{"0": {"W": torch.tensor([[-1.0, 0.0, 0.4, 2.0]]), "b": torch.zeros(1)}}]
    # 2 bits: three steps of 1 over [-1, 2], zero at code 1: codes 0 1 1 3
    made = make("merge", {"tvq": {"bits": 2}})(bank(f, one), f)
    assert changes(f, made, 1)["0"][0].tolist() == [[-1.0, 0.0, 0.0, 2.0]]
    assert made.take(1)["0"]["W_codes@0"].tolist() == [0b11_01_01_00]


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_number_is_within_half_a_step(bits):
    made = kept(bits=bits)
    for j, tree in enumerate(TREES):
        for key, (dW, db) in changes(F, made, j + 1).items():
            for got, want in ((dW, tree[key]["W"]), (db, tree[key]["b"])):
                step = (want.max().clamp(min=0) - want.min().clamp(max=0)) / (2**bits - 1)
                assert ((got - want).abs() <= 0.51 * step + want.abs() / 64).all()
    numbers = sum(t.numel() for p in TREES[0].values() for t in p.values())
    assert made.tables["fixed.uint8"].n <= numbers * bits / 8 + 3 * 4


def test_more_bits_and_smaller_groups_lose_less():
    errors = [error(kept(bits=b)) for b in (2, 3, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 10 * errors[-1]
    assert error(kept(bits=2, group=16)) < 0.9 * error(kept(bits=2))


def test_a_base_of_three_bits_and_offsets_of_two_beat_two_bits():
    """RTVQ's setting: task vectors that have something in common."""
    common = trees(F, 1, seed=9)[0]
    alike = [{k: {n: t + 3 * common[k][n] for n, t in p.items()} for k, p in tree.items()} for tree in TREES]
    plain, both = (error(kept(alike, **s), alike) for s in ({"bits": 2}, {"bits": 2, "base": 3}))
    assert both < 0.6 * plain


def test_offsets_are_taken_from_the_base_as_stored():
    made = kept(bits=2, base=3)
    site = made.sites[0]
    base = made.delta.common(
        {n.partition("@")[0]: t for n, t in made.tables["shared"].get(1)[""].items() if n.endswith("@0")}, "W", TREES[0]["0"]["W"]
    )
    mean = sum(tree["0"]["W"] for tree in TREES) / 4
    assert 0 < (base - mean).abs().max() < (mean.max() - mean.min()) / 7
    rest = [
        {s.key: {"W": tree[s.key]["W"] - (base if s == site else 0), "b": tree[s.key]["b"]} for s in made.sites} for tree in TREES
    ]
    for j in range(4):
        close(changes(F, made, j + 1)["0"][0], base + changes(F, kept(rest, bits=2), j + 1)["0"][0])
