"""Libraries: what is in them, which experts are alike, and rows that come without a task."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from engine import _tiny as tiny

import anabranch as ab
from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.fold import fold
from anabranch.core.names import every, make
from anabranch.core.route import Route
from anabranch.core.site import find
from anabranch.engine import change, exchange, result, store
from anabranch.engine.backbone import backbone_of
from anabranch.engine.experts import together
from anabranch.engine.library import Library
from anabranch.engine.model import load
from anabranch.errors import InputError

SITES = ["attention.query[-1:]", "attention.value[-1:]"]
TEXTS = ["the red cat sits", "a blue owl walks near ann", "w1 w2 w3", ""]


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(str(tiny.home() / "bert"), "float32")


@pytest.fixture(scope="module")
def out():
    """A run whose tasks all kept a slot of their own."""
    place = tiny.home() / "library"
    if not place.exists():
        names = ["classify", "multilabel", "pair"]
        tiny.fit(tiny.plan(tiny.home() / "bert", tiny.home() / "data", names, delta={"lora": {"rank": 2, "alpha": 2.0}}), place)
        folder, bundle = store.open_bundle(place)
        f, rng = backbone_of(str(tiny.home() / "bert"), "float32").f, torch.Generator().manual_seed(5)
        made = store.bank_of(bundle["banks"][0], f)
        for name, record in bundle["tasks"].items():  # whatever fit chose: it is slots that matter here
            tree = {
                f"0/{s.key}": {n: torch.randn(t.shape, generator=rng) for n, t in made.delta.init(s, rng).items()}
                for s in made.sites
            }
            _, head, post, *_ = store.parts_of(folder, record["file"])
            bundle["tasks"][name] = store.save_task(folder, record | {"rung": "delta"}, store.pack(tree, "bf16"), head, post)
        store.save(folder, bundle | {"shared": None})
    return place


def bank(f, delta="lora", seed=0, slots=2, at=SITES, spread=0.3):
    rng = torch.Generator().manual_seed(seed)
    made = Bank.make(make("delta", delta), make("gate", "by_task"), find(f, at), rng)
    made.add([made.fresh(rng) for _ in range(slots)])
    own = made.tables["own"].data
    own[1:] += spread * torch.randn(own[1:].shape, generator=rng)
    return made


def lora(rank, alpha=2.0):
    return {"lora": {"rank": rank, "alpha": alpha}}


def inputs(backbone, texts):
    return backbone.inputs([t.ids for t in backbone.tokens(texts)])


def last(backbone, banks, texts, route):
    return Adapted(backbone.f, banks)(inputs(backbone, texts), route).last_hidden_state


# ---- what is in it


def test_experts_are_listed_and_described(out, backbone):
    library = ab.Library([out])
    assert library.names == ["classify", "multilabel", "pair"] and len(library) == 3
    assert repr(library).endswith("3 experts: classify, multilabel, pair)")
    told = library.describe()[0]
    assert told["source"] == "library" and told["tasks"]["classify"]["kind"] == "classify" and told["sites"] > 0
    assert told["delta"][0]["method"] == "delta.lora" and told["delta"][0]["settings"]["rank"] == 2
    assert told["numbers"] == library.experts[0].parts[0][0].tables["own"].n
    assert [e.name for e in library] == library.names


def test_all_sorts_of_sources(out, backbone, tmp_path):
    made = bank(backbone.f, lora(3))
    exchange.to_peft(backbone.f, made, 1, tmp_path / "peft", backbone.id)
    library = Library({"run": load(out), "mine": made, "contributed": tmp_path / "peft"})
    assert library.names == ["classify", "multilabel", "pair", "mine/1", "mine/2", "contributed"]
    assert library.experts[-1].source == "contributed" and not library.experts[-1].tasks
    assert Library([out / "bundle", made]).names[3:] == ["bank 2/1", "bank 2/2"]


def test_skills_that_tasks_trained_together_are_experts_without_a_task(out, backbone):
    model = load(out)
    skills = Bank.make(make("delta", lora(2)), make("gate", "poly"), model.banks[0].sites, torch.Generator())
    skills.add([model.banks[0].take(1), model.banks[0].take(2)])
    model.banks.append(skills)
    model.bundle = dict(model.bundle) | {"shared": {"bank": 1, "slots": 2, "tasks": []}}
    library = Library([model])
    assert library.names[3:] == ["library skill 1", "library skill 2"] and library.experts[3].parts == ((skills, 1),)
    skills.gate = make("gate", "arrow")  # a gate over copies of the tasks' own slots adds no expert
    assert Library([model]).names == ["classify", "multilabel", "pair"]


def test_equal_names_are_told_apart_by_their_source(out, tmp_path):
    shutil.copytree(out, tmp_path / "again")
    library = Library([out, tmp_path / "again"])
    assert library.names == [f"{s}/{t}" for s in ("library", "again") for t in ("classify", "multilabel", "pair")]
    assert [*library.experts[3].tasks] == ["again/classify"]
    with pytest.raises(InputError, match="two experts are called library/classify: give the sources other labels"):
        Library([out, out])


# ---- what cannot be one


@pytest.mark.parametrize("sources", [[], {}])
def test_an_empty_library(sources):
    with pytest.raises(InputError, match="an empty library: it needs at least one .* got no sources"):
        Library(sources)


def test_sources_without_a_delta_are_an_empty_library(out, tmp_path):
    shutil.copytree(out, tmp_path / "probes")
    folder, bundle = store.open_bundle(tmp_path / "probes")
    for record in bundle["tasks"].values():
        _, head, post, *_ = store.parts_of(folder, record["file"])
        record |= store.save_task(folder, record | {"rung": "probe"}, {}, head, post)
    store.save(folder, bundle)
    with pytest.raises(InputError, match="an empty library: .* got probes, whose tasks all answer from the probe$"):
        Library([tmp_path / "probes"])


def test_a_bank_without_slots(backbone):
    with pytest.raises(InputError, match="an empty library: .* got bank 1, a bank without slots$"):
        Library([bank(backbone.f, slots=0)], backbone=backbone)


@pytest.mark.parametrize("sources", [[None], [3], {"a": None}])
def test_what_is_no_source(sources):
    with pytest.raises(InputError, match=r"source 1 of a library: expected a run, .* got (None|3); pass its folder"):
        Library(sources)


@pytest.mark.parametrize("sources", [None, 3])
def test_what_is_no_list_of_sources(sources):
    with pytest.raises(InputError, match=r"a list of sources, each a run, .* got (None|3): pass \['runs/a'\]"):
        Library(sources)


def test_an_expert_of_another_backbone(out, tmp_path):
    other = backbone_of(str(tiny.bert(tmp_path / "other", seed=9)), "float32")
    with pytest.raises(InputError, match="was made for backbone .* with fingerprint .* its deltas would not fit"):
        Library([out], backbone=other)
    with pytest.raises(InputError, match="was made for backbone .* with fingerprint"):
        Library([load(out)], backbone=other)


def test_a_bank_of_another_backbone(backbone):
    from laws._nasty import backbone as random_backbone

    wide = torch.nn.Sequential(torch.nn.Linear(6, 6))
    with pytest.raises(InputError, match="bank 1 was made for another backbone than .*: it sits at 0 .*, which it lacks"):
        Library([bank(wide, lora(2), at="0")], backbone=backbone)
    made = bank(backbone.f, lora(2))
    other = random_backbone("bert")
    assert other.config.hidden_size == backbone.d
    fine = [s for s in made.sites]
    made.sites = [s.__class__(**(vars(s) | {"d_in": 7})) for s in fine]
    with pytest.raises(InputError, match=r"it sits at .* \[32, 7\], which is \[32, 32\] there"):
        Library([made], backbone=backbone)


def test_banks_need_to_be_told_their_backbone(backbone):
    with pytest.raises(InputError, match="banks and PEFT folders do not name their backbone: pass backbone="):
        Library([bank(backbone.f)])
    with pytest.raises(InputError, match=r"a list of sources, got a single one: put it in \[ \]"):
        Library("runs/a")


# ---- many kinds in one bank


def test_ranks_are_padded_and_answers_stay(backbone):
    a, b = (
        bank(backbone.f, lora(2, 3.0)),
        bank(backbone.f, lora(5, 1.0), seed=1, slots=1, at=["attention.query[-1:]", "mlp.in[-1:]"]),
    )
    library = Library([a, b], backbone=backbone)
    joint = together(library.experts, backbone)
    assert len(joint) == 3 and joint.delta == make("delta", lora(5, 5.0)) and len(joint.sites) == 3
    for slot, (source, number) in enumerate([(a, 1), (a, 2), (b, 1)], 1):
        want = last(backbone, [source], TEXTS, Route.to([number] * 4))
        torch.testing.assert_close(last(backbone, [joint], TEXTS, Route.to([slot] * 4)), want, rtol=1e-4, atol=1e-5)


def test_other_mixtures_become_dense(backbone):
    made = [
        bank(backbone.f, lora(2), slots=1),
        bank(backbone.f, "offset", slots=1),
        bank(backbone.f, "ia3", slots=1, at="attention.value[-1:]"),
    ]
    library = Library(made, backbone=backbone)
    joint = together(library.experts, backbone)
    assert type(joint.delta).__name__ == "Dense"
    for slot, source in enumerate(made, 1):
        state = fold(backbone.f, [(source, 1, 1.0)])
        again = fold(backbone.f, [(joint, slot, 1.0)])
        for name in state:
            torch.testing.assert_close(again[name], state[name], rtol=1e-5, atol=1e-6)


def test_experts_that_change_activations_are_alone_with_their_kind(backbone):
    adapters = bank(backbone.f, "adapter", at="attention.out[-1:]")
    assert len(together(Library([adapters], backbone=backbone).experts, backbone)) == 2
    with pytest.raises(InputError, match="expert bank 1/1: Adapter changes activations, not weights.* only with their own kind"):
        together(Library([adapters, bank(backbone.f)], backbone=backbone).experts, backbone)


# ---- compared


def test_likeness_is_the_cosine_of_the_changes(backbone):
    """By the factors, as by the matrices written out; the dense way says the same."""
    made = bank(backbone.f, lora(2), slots=3)
    flat = torch.stack([torch.cat([(p["a"] @ p["b"]).flatten() for p in made.take(i).values()]) for i in (1, 2, 3)])
    want = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    torch.testing.assert_close(Library([made], backbone=backbone).similar(), want, rtol=1e-4, atol=1e-4)
    mixed = Library([made, bank(backbone.f, "offset", slots=1)], backbone=backbone).similar()
    torch.testing.assert_close(mixed[:3, :3], want, rtol=1e-4, atol=1e-4)
    assert mixed[3, :3].abs().max() < 1e-6 and mixed[3, 3] == pytest.approx(1)  # a bias has nothing of a weight
    other = Library([bank(backbone.f, "adapter", at="attention.out[-1:]")], backbone=backbone).similar()
    assert other.diagonal().tolist() == pytest.approx([1, 1])


def families(f, groups=3, members=3):
    """LoRAs around a few centres, in mixed order."""
    made, rng = bank(f, lora(2), slots=0), torch.Generator().manual_seed(0)
    centres = [torch.randn(made.tables["own"].n, generator=rng) for _ in range(groups)]
    rows = [(1 + i) * (c + 0.2 * torch.randn(c.shape, generator=rng)) for i in range(members) for c in centres]
    made.add([made.tree({"own": row, "keys": torch.zeros(0)}) for row in rows])
    return made


@pytest.mark.parametrize("k", [1, 3, 9])
def test_clusters_are_the_families(backbone, k):
    """Sizes of the changes do not count, and k-means in the space that they span is k-means on the changes themselves."""
    library = Library({"e": families(backbone.f)}, backbone=backbone)
    found = library.clusters(k)
    assert [*found] == [f"cluster {i}" for i in range(1, k + 1)] and found == library.clusters(k)
    assert sorted(n for members in found.values() for n in members) == sorted(library.names)
    if k == 3:
        assert [*found.values()] == [["e/1", "e/4", "e/7"], ["e/2", "e/5", "e/8"], ["e/3", "e/6", "e/9"]]
    gate = make("gate", {"enforced": {"domains": found}})  # and so they train one expert each
    assert gate.groups(library.names) == [*found.values()]


@pytest.mark.parametrize("k", [0, 10, -1, "a", 1.5, None])
def test_more_clusters_than_experts(backbone, k):
    with pytest.raises(InputError, match=f"a library of 9 experts has 1 to 9 clusters, got {k!r}: pass a whole number"):
        Library({"e": families(backbone.f)}, backbone=backbone).clusters(k)


def test_equal_experts_are_one_cluster(backbone):
    made = bank(backbone.f, lora(2), slots=1)
    made.add([made.take(1), made.take(1)])
    assert Library({"e": made}, backbone=backbone).clusters(2) == {"cluster 1": ["e/1", "e/2", "e/3"]}


# ---- routed


@pytest.mark.parametrize("gate", ["arrow", {"arrow": {"top": 1}}, "mhr_mu", "fixed"])
def test_rows_without_a_task_are_answered(out, gate):
    library = Library([out])
    routed = library.route(gate)
    found = routed.ask(["the red cat", {"text": "a red owl", "text_b": "blue"}, {"text": "w1"}])
    assert [set(a) >= {"expert", "task", "shares", "prediction", "scores"} for a in found] == [True] * 3
    for entry in found:
        assert set(entry["shares"]) == set(library.names) and sum(entry["shares"].values()) == pytest.approx(1, abs=1e-4)
        assert entry["task"] in library.names and min(entry["shares"].values()) >= 0
    assert found[0]["task"] != "pair"  # it has no second text
    alone = routed.ask([{"text": "w1"}])[0]
    assert alone["prediction"] == found[2]["prediction"] and alone["shares"] == pytest.approx(found[2]["shares"], abs=1e-5)
    assert routed.ask([]) == [] and routed.features([]).shape == (0, 32)
    with pytest.raises(InputError, match="row 1: no expert's task can do with tokens"):
        routed.ask([{"tokens": ["a"]}])
    for rows, words in (
        ([3], "row 1: expected a text or {'text': ...}, got 3"),
        (["a", None], "row 2: expected a text .* got None"),
        ([{"text": 3}], "row 1: text is a string .* got 3"),
        ([{"tokens": [1]}], r"row 1: .* tokens a list of strings, got \[1\]"),
        ("w1", r"rows is a list .* put a single one in \[ \]"),
        (3, "rows is a list .* got 3"),
    ):
        for asked in (routed.ask, routed.shares):
            with pytest.raises(InputError, match=words):
                asked(rows)


def test_the_head_is_that_of_the_largest_share(out):
    routed = Library([out]).route()
    shares = routed.shares(TEXTS)
    for row, entry in zip(shares, routed.ask(TEXTS), strict=True):
        best = max(("classify", "multilabel"), key=lambda n: float(row[routed.library.names.index(n)]))
        assert entry["expert"] == entry["task"] == best
        assert routed.predict(best, TEXTS)[TEXTS.index(TEXTS[0])] is not None


def test_a_library_of_one_answers_as_its_expert(out):
    """The only candidate has weight 1: predictions of the plain model, with a head that a row names."""
    model = load(out)
    library = Library([out])
    library.experts = library.experts[:1]
    routed = library.route()
    for a, b in zip(routed.predict("classify", TEXTS), model.predict("classify", TEXTS), strict=True):
        assert a["prediction"] == b["prediction"] and a["scores"] == pytest.approx(b["scores"], abs=1e-3)
    assert routed.ask(TEXTS)[1]["shares"] == {"classify": pytest.approx(1)}
    assert "1 tasks: classify" in repr(routed)


def test_features_are_those_of_the_mixture(backbone):
    made = bank(backbone.f, lora(2), slots=3)
    routed = Library([made], backbone=backbone).route({"arrow": {"top": 2}})
    hidden = last(backbone, routed.banks, TEXTS, Route.to([[1, 2, 3]] * 4))
    mask = inputs(backbone, TEXTS)["attention_mask"]
    torch.testing.assert_close(routed.features(TEXTS), backbone.pooled(hidden, mask), rtol=1e-4, atol=1e-5)
    plain = backbone.pooled(backbone.f(**inputs(backbone, TEXTS)).last_hidden_state, mask)
    assert not torch.allclose(routed.features(TEXTS), plain, atol=1e-3)


def test_a_new_expert_moves_no_key_of_the_others(backbone):
    """Not even one of a higher rank, for which all others are padded."""
    a, b, c = bank(backbone.f, lora(2)), bank(backbone.f, lora(2), seed=1), bank(backbone.f, lora(6), seed=2)
    old = Library([a], backbone=backbone).bank("arrow")
    for more in (b, c):
        new = Library([a, more], backbone=backbone).bank("arrow")
        assert torch.equal(new.tables["keys"].data[:3], old.tables["keys"].data) and len(new) == 4


def test_arrow_reads_keys_of_any_change_of_weights(backbone):
    """A mask has no factors: it is routed as what it changes, by the top right singular vector of that."""
    made = bank(backbone.f, "mask", slots=2, spread=0.05)
    routed = Library([made], backbone=backbone).bank({"arrow": {"top": 1}})
    site = made.sites[0]
    dW = made.delta.weight(made.take(1)[site.key], site.weight(backbone.f)[0], None)[0].detach()
    v = routed.take(1)[site.key]["key.v"]
    assert (dW @ v).norm() == pytest.approx(float(torch.linalg.matrix_norm(dW, 2)), rel=1e-3)


def test_learned_keys_come_with_their_experts(backbone):
    rng = torch.Generator().manual_seed(0)
    made = Bank.make(make("delta", lora(2)), make("gate", "phatgoose"), find(backbone.f, SITES), rng)
    slots = [made.fresh(rng) for _ in range(2)]
    for tree in slots:
        for p in tree.values():
            p["key.v"] = torch.randn(p["key.v"].shape, generator=rng)
    made.add(slots)
    routed = Library([made], backbone=backbone).bank("phatgoose")
    assert all(torch.equal(routed.take(i)[s.key]["key.v"], slots[i - 1][s.key]["key.v"]) for i in (1, 2) for s in made.sites)
    with pytest.raises(
        InputError, match="gate phatgoose has keys that are learned, and bank 2/1 was fitted without: .* or use arrow"
    ):
        Library([made, bank(backbone.f, lora(2))], backbone=backbone).bank("phatgoose")


def test_keys_from_examples(backbone):
    """Texts of each expert's task: the key is their mean input at the site, so a text like them takes that expert."""
    library = Library({"colours": bank(backbone.f, slots=1), "numbers": bank(backbone.f, slots=1, seed=3)}, backbone=backbone)
    examples = {"colours": ["red green blue", "blue red", "green"], "numbers": ["w1 w2 w3", "w5 w9", "w11"]}
    routed = library.route({"keyed": {"top": 1}}, examples)
    assert routed.shares(["green red", "w3 w7 w2"]).argmax(1).tolist() == [0, 1]
    with pytest.raises(InputError, match=r"gate keyed reads its keys from texts of each task: pass examples=\{'numbers': \[text"):
        library.route("keyed", {"colours": ["red"]})


@pytest.mark.parametrize("gate", ["by_task", "enforced", "poly", "mhr", "mhr_z", "mixda", "task_aware", "moore", "learned"])
def test_gates_that_need_a_task_are_refused(backbone, gate):
    with pytest.raises(InputError, match=f"gate {gate} chooses by a row's task"):
        Library([bank(backbone.f)], backbone=backbone).route(gate)


def test_every_gate_is_either_refused_or_routes(backbone):
    library, examples = Library({"e": bank(backbone.f)}, backbone=backbone), {"e/1": TEXTS[:2], "e/2": TEXTS[2:3]}
    for name in every("gate"):
        try:
            routed = library.route(name, examples)
        except InputError:
            continue
        assert routed.features(TEXTS).isfinite().all() and routed.shares(TEXTS).shape == (4, 2)


def test_more_experts_a_row_than_there_are(backbone):
    library = Library([bank(backbone.f)], backbone=backbone)
    with pytest.raises(InputError, match="gate arrow keeps 3 of a row's experts, the library has 2: lower top"):
        library.route({"arrow": {"top": 3}})
    assert library.route("arrow").shares(TEXTS).shape == (4, 2)  # nobody asked for four


# ---- of fitted runs

NAMES = ("classify", "pair", "regress")


def fitted(place, rungs, steps=4, **more):
    """A run whose tasks answer from ``rungs``, one for all or {task: rung}; and its results."""
    at = rungs if isinstance(rungs, dict) else dict.fromkeys(NAMES, rungs)
    data = tiny.home() / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result, "choose", lambda job, found, seed: next(r for r in found if r.name == at[job.name]))
        plan = tiny.plan(tiny.home() / "bert", data, at, delta={"lora": {"rank": 2}, "at": SITES, "lr": 3e-3}) | more
        return place, tiny.fit(plan, place, steps=steps)


PHATGOOSE = {"phatgoose": {"top": 2}}
EVERYWHERE = [dict.fromkeys(NAMES, "shared"), dict.fromkeys(NAMES, "delta"), dict.fromkeys(NAMES, "probe"),
              {"classify": "delta", "pair": "shared", "regress": "probe"}]  # fmt: skip


def keys(library):
    return {e.name: e.parts[0][0].tables["keys"].data[e.parts[0][1]].float() for e in library}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """With learned keys, by what the tasks answer from."""
    place = tmp_path_factory.mktemp("runs")
    return [fitted(place / f"run{i}", rungs, 16, gate=PHATGOOSE) for i, rungs in enumerate(EVERYWHERE)]


@pytest.mark.parametrize("i", range(4))
def test_a_run_fitted_with_learned_keys_is_a_library_whatever_its_tasks_answer_from(runs, i):
    (out, found), whole = runs[i], Library([runs[0][0]])
    library = ab.Library([out])
    assert library.names == [*NAMES] and [[*e.tasks] for e in library] == [[n] for n in NAMES]
    for name, key in keys(library).items():
        assert key.any() and torch.equal(key, keys(whole)[name])
    routed, first = library.route(PHATGOOSE), whole.route(PHATGOOSE)
    asked, want = routed.ask(TEXTS), first.ask(TEXTS)
    assert [a["prediction"] for a in asked] == [a["prediction"] for a in want]  # under heads of the same training
    assert routed.predict("pair", [{"text": "red", "text_b": "blue"}]) == first.predict(
        "pair", [{"text": "red", "text_b": "blue"}]
    )
    for name, scores in load(out).evaluate(tiny.home() / "data").items():  # and the run itself answers as it did
        assert scores["score"] == pytest.approx(found["tasks"][name]["test"], abs=1e-6)


@pytest.mark.parametrize("i", range(4))
def test_what_a_library_keeps_is_counted(runs, i):
    out, found = runs[i]
    stored = [store.get(out / "bundle", p.name) for p in (out / "bundle").glob("*.safetensors")]
    parts = [t for tensors in stored for n, t in tensors.items() if not n.startswith("post/")]
    told = 1000 * sum(t["kilobytes"] for t in found["tasks"].values())
    assert told == pytest.approx(sum(t.numel() * t.element_size() for t in parts), abs=2)
    assert (store.open_bundle(out)[1]["shared"] is None) == (i in (1, 2))


def test_a_library_of_one_with_learned_keys_is_the_gate_of_the_run(runs):
    """The same slots under the same gate: features of the run's own rows."""
    out = runs[0][0]
    model, routed = load(out), Library([out]).route(PHATGOOSE)
    a, b = model.predict("classify", TEXTS), routed.predict("classify", TEXTS)
    for x, y in zip(a, b, strict=True):
        assert x["prediction"] == y["prediction"] and x["scores"] == pytest.approx(y["scores"], abs=1e-2)


def test_changes_of_a_run_are_changes_of_its_library(runs, tmp_path):
    out = shutil.copytree(runs[3][0], tmp_path / "run")
    change.remove(out, "pair")  # the only one that answered through the gate
    assert Library([out]).names == ["classify", "regress"] and [*load(out).tasks] == ["classify", "regress"]
    tiny.folder(tmp_path / "data" / "pair", "pair", seed=1)
    with pytest.MonkeyPatch.context() as patch, tiny.quick(2):
        patch.setattr(result, "choose", lambda job, rungs, seed: rungs[-1])
        change.add(out, {"tasks": {"pair": {"data": str(tmp_path / "data" / "pair")}}})
    library = Library([out])
    assert library.names == ["classify", "regress", "pair"] and not library.experts[2].parts[0][0].tables["keys"].n
    assert len(library.route().ask(TEXTS)) == 4
    with pytest.raises(InputError, match="gate phatgoose has keys that are learned, and pair was fitted without"):
        library.route(PHATGOOSE)
    again = shutil.copytree(runs[1][0], tmp_path / "again")
    folder, bundle = store.open_bundle(again)
    bundle["tasks"]["pair"] = bundle["tasks"]["classify"]  # another one under the name
    store.save(folder, bundle)
    assert not Library([again]).experts[2].parts[0][0].tables["keys"].n
    assert len(change.merge(again, "mean")["tasks"]) == 3  # whose bundle is of one delta, as without a gate
    assert change.export(again, "classify", tmp_path / "peft", "peft")["files"]


@pytest.mark.parametrize(("rungs", "names"), [("shared", [*NAMES]), (EVERYWHERE[3], [*NAMES]), ("delta", [*NAMES])])
def test_a_gate_that_reads_its_keys_from_the_slots(tmp_path, rungs, names):
    out, _ = fitted(tmp_path / "run", rungs, gate={"arrow": {"top": 2}})
    assert ("experts" in store.open_bundle(out)[1]) == (rungs != "delta")  # else the slots of the tasks say it all
    library = Library([out])
    assert library.names == names and len(library.route().ask(TEXTS)) == 4


def test_several_deltas_with_learned_keys(tmp_path):
    deltas = [{"lora": {"rank": 2}, "at": "attention.query[-1:]"}, {"lora": {"rank": 3}, "at": "attention.value[-1:]"}]
    out, _ = fitted(tmp_path / "run", EVERYWHERE[3], gate=PHATGOOSE, delta=deltas)
    library = Library([out])
    assert [len(e.parts) for e in library] == [2, 2, 2] and library.route(PHATGOOSE).shares(TEXTS).shape == (4, 3)


def test_clusters_then_arrow(tmp_path):
    """Ostapenko et al. end to end: a delta for each task, like ones together, one expert a cluster, rows without a task."""
    alone, _ = fitted(tmp_path / "alone", "delta")
    domains = Library([alone]).clusters(2)
    out, found = fitted(tmp_path / "mbc", "shared", gate={"enforced": {"domains": domains}})
    library = ab.Library([out])
    assert library.names == ["mbc skill 1", "mbc skill 2"] and [[*e.tasks] for e in library] == [*domains.values()]
    assert [*library.describe()[0]["tasks"]] == domains["cluster 1"]
    routed = library.route({"arrow": {"top": 1}})
    for name in NAMES:
        assert len(routed.predict(name, [{"text": "red cat", "text_b": "blue"}])) == 1
    for entry in routed.ask([*TEXTS, {"text": "red", "text_b": "blue"}]):
        expert = library.experts[library.names.index(entry["expert"])]
        assert entry["task"] in expert.tasks and "prediction" in entry
    model = load(out)
    library.experts = [e for e in library if "pair" in e.tasks]  # alone it answers as the run does
    row = [{"text": "red", "text_b": "blue"}]
    answer = library.route().ask(row)[0]
    assert answer["task"] == "pair"  # which reads most of the row
    assert answer["scores"] == pytest.approx(model.predict("pair", row)[0]["scores"], abs=1e-2)


@pytest.mark.parametrize(
    ("gate", "experts"), [("by_task", ["run shared"]), ({"poly": {"slots": 2}}, ["run skill 1", "run skill 2"])]
)
def test_what_tasks_trained_together_answers_for_them(tmp_path, gate, experts):
    out, _ = fitted(tmp_path / "run", {"classify": "shared", "pair": "shared", "regress": "delta"}, gate=gate)
    library = Library([out])
    assert sorted(library.names) == sorted(["regress", *experts])
    assert all([*e.tasks] == (["regress"] if e.name == "regress" else ["classify", "pair"]) for e in library)
    library.experts = [e for e in library if e.name != "regress"]
    tasks = [a["task"] for a in library.route({"arrow": {"top": 1}}).ask(["red cat", {"text": "red", "text_b": "blue"}])]
    assert tasks == ["classify", "pair"]


def test_tasks_of_one_name_in_experts_of_several_names(tmp_path):
    one, _ = fitted(tmp_path / "one", {"classify": "shared", "pair": "shared"})
    two, _ = fitted(tmp_path / "two", {"classify": "delta"})
    library = Library([one, two])
    assert library.names == ["one shared", "classify"]
    assert [[*e.tasks] for e in library] == [["one/classify", "pair"], ["two/classify"]]
    assert len(library.route({"arrow": {"top": 1}}).predict("two/classify", TEXTS)) == 4


def test_an_exported_adapter_comes_back_and_one_of_another_model_does_not(out, backbone, tmp_path):
    change.export(out, "classify", tmp_path / "peft", "peft")
    assert Library([tmp_path / "peft"], backbone=backbone).names == ["peft"]
    config = tmp_path / "peft" / "adapter_config.json"
    said = json.loads(config.read_text())
    for base, fine in (("", True), (None, True), ("org/BERT", True), (str(tiny.home() / "bert") + "/", True),
                       ("hub/models--org--bert/snapshots/0a1b", True), ("google/bert-mini", False), ("other", False)):  # fmt: skip
        config.write_text(json.dumps(said | {"base_model_name_or_path": base}))
        if fine:
            assert len(Library([tmp_path / "peft"], backbone=backbone)) == 1
        else:
            with pytest.raises(
                InputError, match=f"peft was trained on {base}, and this is .*bert: pass that backbone, or .* write"
            ):
                Library([tmp_path / "peft"], backbone=backbone)


@pytest.mark.parametrize(("base", "fine"), [("sentence-transformers/all-MiniLM-L6-v2", True), ("minilm", True),
                                            ("sentence-transformers/paraphrase-MiniLM-L6-v2", False)])  # fmt: skip
def test_an_adapter_names_an_embedded_backbone_as_the_hub_does(out, backbone, tmp_path, base, fine):
    exchange.to_peft(backbone.f, bank(backbone.f, lora(2)), 1, tmp_path / "peft", base)
    embedded = replace(backbone, id="minilm", folder=str(tmp_path / "package" / "model"))
    if fine:
        assert len(Library([tmp_path / "peft"], backbone=embedded)) == 1
    else:
        with pytest.raises(InputError, match=f"was trained on {base}, and this is minilm: .* write 'minilm' as base_model_name"):
            Library([tmp_path / "peft"], backbone=embedded)
