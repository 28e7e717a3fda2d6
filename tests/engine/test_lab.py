"""The laboratory on tiny tasks: ways to train, share, route and merge; what was trained once is not trained again."""

from dataclasses import replace

import pytest
import torch
from engine import _tiny as tiny

from anabranch.core.adapt import Adapted
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.engine import lab as laboratory
from anabranch.engine.lab import Lab
from anabranch.engine.merging import one
from anabranch.engine.train import Trainer
from anabranch.errors import InputError
from anabranch.merge.tangent import Linearised, linearised

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


def test_stages_train_the_places_that_slots_begin_with(suite):
    experts = suite.only("classify", "pair").own({"dense": {}} | WHERE, epochs=1)
    bank = make("merge", {"composable_sft": {"density": 0.1, "dense": 0.5}})(
        experts.stages(epochs=2), Adapted(suite.f, []), ["classify", "pair"]
    )
    assert len(bank) == 2 and bank.delta == make("delta", {"sparse": {"density": 0.1}})
    places = bank.tables["fixed.int32"].data[1:]
    assert (places >= 0).sum(1).tolist() == [round(0.1 * experts.numbers)] * 2 and not torch.equal(places[0], places[1])
    assert (bank.tables["own"].data[1:].abs().amax(1) > 0).all()
    with pytest.raises(InputError, match="only dense ones begin fresh"):
        experts.stages()("lora", {}, 1.0)


def test_a_merge_in_the_tangent_space_runs_there(suite, monkeypatch):
    experts = suite.only("classify", "pair").own({"dense": {}} | WHERE, epochs=1)
    bank = make("merge", "tangent")(experts.stages(epochs=2), Adapted(suite.f, []), ["classify", "pair"])
    asked: list[object] = []
    run = Linearised.__call__
    monkeypatch.setattr(Linearised, "__call__", lambda self, *given: asked.append(self) or run(self, *given))
    plain, straight = (experts.under(replace(one(bank, 2), tangent=tangent)) for tangent in (False, True))
    assert asked and set(plain) == set(straight) == {"classify", "pair"} and straight["classify"] > 0.5
    adapted, units = Adapted(suite.f, [bank], suite.features.tail), suite.jobs["classify"].parts["test"].units
    inputs, features = suite.features.entry([u for row in units[:1] for u in row])
    wanted = linearised(adapted, inputs, torch.ones(1, 1, dtype=torch.long), features=features).last_hidden_state
    assert torch.equal(run(Linearised(adapted), inputs, Route.to([1]), features).last_hidden_state, wanted)
