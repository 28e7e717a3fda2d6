"""The laboratory on tiny tasks: ways to train, share, route and merge; what was trained once is not trained again."""

import pytest
import torch
from engine import _tiny as tiny

from anabranch.engine import lab as laboratory
from anabranch.engine.lab import Lab
from anabranch.engine.train import Trainer
from anabranch.errors import InputError

NAMES = ["classify", "pair", "regress"]
WHERE = {"at": ["attention.query", "attention.value"]}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laboratory, "profile", lambda: {"dtype": "float32"})
        lab = Lab(0, tiny.home() / "data", tmp_path_factory.mktemp("lab"))
        yield lab.suite(NAMES, backbone=str(tiny.home() / "bert"), blocks=1, rows=48, test=20)


def test_rows_are_drawn_by_the_seed_and_the_test_rows_are_not(suite, tmp_path):
    drawn = [Lab(seed, suite.lab.data, tmp_path).tasks(["classify"], rows=30, test=10)[0] for seed in (0, 0, 1)]
    assert drawn[0].train.text == drawn[1].train.text != drawn[2].train.text
    assert drawn[0].test.text == drawn[2].test.text and len(drawn[0].test) == 10
    assert len(drawn[0].train) + len(drawn[0].valid) <= 30 + len(drawn[0].valid)
    with pytest.raises(InputError, match="none of the tasks that claims use"):
        Lab(0, tmp_path).tasks(3)


def test_what_was_trained_is_not_trained_again(suite, monkeypatch):
    first = suite.own({"lora": {"rank": 2}} | WHERE, epochs=1)
    scores = first.scores()
    assert list(scores) == NAMES and first.numbers == first.slots[0]["0.own"].numel() and first.bytes == 2 * first.numbers
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("trained twice"))
    again = suite.own({"lora": {"rank": 2}} | WHERE, epochs=1)
    assert again.scores() == scores and all(
        torch.equal(a["0.own"], b["0.own"]) for a, b in zip(first.slots, again.slots, strict=True)
    )
    assert suite.only("pair").own({"lora": {"rank": 2}} | WHERE, epochs=1).scores() == {"pair": scores["pair"]}


def test_a_slot_without_a_step_answers_as_the_probe(suite):
    dense = suite.own({"dense": {}} | WHERE, epochs=1, lr=1e-12)
    assert dense.scores() == pytest.approx(suite.probe(), abs=0.051)


def test_slots_that_all_train_and_gates_over_them(suite):
    one = suite.shared({"lora": {"rank": 2}} | WHERE, epochs=1)
    many = suite.shared({"lora": {"rank": 2}} | WHERE, gate={"poly": {"slots": 3}}, epochs=1)
    assert len(one.slots) == 1 and len(many.slots) == 3 and set(many.gates) == set(NAMES)
    assert set(one.scores()) == set(many.scores()) == set(NAMES)


@pytest.mark.parametrize("gate", [{"arrow": {"top": 2}}, {"phatgoose": {"top": 2}}])
def test_a_library_is_routed_and_stays_as_it_is(suite, gate):
    library = suite.own({"lora": {"rank": 2}} | WHERE, epochs=1)
    before = [slot["0.own"].clone() for slot in library.slots]
    routed = suite.over(library, gate, epochs=1)
    assert set(routed.scores()) == set(NAMES) and len(routed.slots) == 3
    assert all(torch.equal(a, slot["0.own"]) for a, slot in zip(before, routed.slots, strict=True))


@pytest.mark.parametrize("method", ["mean", {"task_arithmetic": {"scale": 0.5}}, "ties", "fisher", "regmean", "tsv", "tall_masks",
                                    {"adamerging": {"steps": 2}}, {"surgery": {"steps": 2}}, "self_positioning"])  # fmt: skip
def test_merges_of_every_form(suite, method):
    experts = suite.only("classify", "pair").own({"dense": {}} | WHERE, epochs=1)
    assert set(experts.merge_scores(method, few=8)) == {"classify", "pair"}


def test_a_merge_of_nothing_learned_is_the_probe(suite):
    experts = suite.only("classify", "pair").own({"dense": {}} | WHERE, epochs=1, lr=1e-12)
    merged = experts.merge_scores("mean")
    assert merged == pytest.approx({n: v for n, v in suite.probe().items() if n != "regress"}, abs=0.051)


def test_stages_give_the_way_from_their_base(suite):
    experts = suite.only("classify", "pair").own({"dense": {}} | WHERE, epochs=1)
    train = experts.stages(epochs=2)
    zero = experts.banks[0].tree({"own": torch.zeros(experts.numbers), "keys": torch.zeros(0)})
    bank = train("dense", zero, 0.5)
    assert len(bank) == 2 and float(bank.tables["own"].data[1:].abs().max()) > 0
