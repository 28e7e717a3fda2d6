"""Changing a bundle: what was there keeps its bits and its answers, whatever goes wrong on the way."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import _tiny as tiny

from anabranch.cli import main
from anabranch.core.fold import changes
from anabranch.core.names import every, find
from anabranch.engine import cache, change, store
from anabranch.engine.cache import read_json, read_sealed
from anabranch.engine.library import Library
from anabranch.engine.model import load
from anabranch.engine.offer import trains
from anabranch.errors import InputError, WorkError

ROWS = {kind: tiny.rows(kind, 6, seed=9) for kind in tiny.KINDS}
SIZES = {"train": 40, "valid": 12, "test": 12}


@contextmanager
def rung(nth: int) -> Iterator[None]:
    """Inside, the nth rung is chosen, good or not: 0 probe, 1 shared where there is one, -1 delta."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anabranch.engine.result.choose", lambda job, rungs, seed: rungs[nth])
        yield


def made(out: Path, names: list[str], nth: int = -1, backbone: str = "bert", **more: Any) -> Path:
    with rung(nth):
        tiny.fit(tiny.plan(tiny.home() / backbone, tiny.home() / "data", names, **more), out, steps=4)
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of four tasks that all have own slots."""
    return made(tmp_path_factory.mktemp("change") / "run", ["classify", "pair", "retrieve", "regress"])


@pytest.fixture
def run(source, tmp_path):
    return Path(shutil.copytree(source, tmp_path / "run"))


def new(place: Path, *kinds: str, draw: int = 3, **more: Any) -> dict[str, Any]:
    """A plan of new tasks ``new <kind>``."""
    names = {kind: tiny.folder(place / "new" / f"{draw}-{kind}", kind, SIZES, draw) for kind in kinds}
    return {"tasks": {f"new {kind}": {"data": str(folder)} for kind, folder in names.items()}} | more


def add(out: Path, plan: dict[str, Any], nth: int = -1, **more: Any) -> dict[str, Any]:
    with rung(nth), tiny.quick(4):
        return change.add(out, plan, **more)


def answers(out: Path, names: Any = None) -> dict[str, Any]:
    model = load(out)
    return {n: model.predict(n, ROWS[model.tasks[n]["kind"]]) for n in names or model.tasks}


def scores(out: Path, data: Path) -> dict[str, float]:
    return {n: t["score"] for n, t in load(out).evaluate(data).items()}


# ---- add


def test_added_tasks_answer_and_the_old_keep_their_bits(run, tmp_path):
    old, before, told = tiny.files(run / "bundle"), answers(run), read_json(run / "results.json")
    results = add(run, new(tmp_path, "tag", "retrieve", "multilabel"))
    now = tiny.files(run / "bundle")
    assert {n: b for n, b in now.items() if n in old and n != "bundle.json"} == {
        n: b for n, b in old.items() if n != "bundle.json"
    }
    assert answers(run, before) == before
    tasks, bundle = results["tasks"], store.open_bundle(run)[1]
    assert (
        list(tasks)
        == ["classify", "pair", "retrieve", "regress", "new tag", "new retrieve", "new multilabel"]
        == list(bundle["tasks"])
    )
    assert {n: t for n, t in tasks.items() if n in told["tasks"]} == told["tasks"] and results == read_json(run / "results.json")
    for kind in ("tag", "retrieve", "multilabel"):
        (tmp_path / "again").mkdir(exist_ok=True)
        shutil.copytree(tmp_path / "new" / f"3-{kind}", tmp_path / "again" / f"new {kind}")
    assert scores(run, tmp_path / "again") == {n: t["test"] for n, t in tasks.items() if n.startswith("new")}


@pytest.mark.parametrize("nth", [0, 1])
def test_added_tasks_that_share_or_need_nothing(run, tmp_path, nth):
    """A slot that new tasks share becomes the own one of each, so that the old shared slot is not touched."""
    shared = made(tmp_path / "shared", ["classify", "pair"], 1)
    bundle = store.open_bundle(shared)[1]
    assert bundle["shared"]["tasks"] == ["classify", "pair"]
    for out in (run, shared):
        before = answers(out)
        results = add(out, new(tmp_path, "tag", "choice"), nth)
        assert answers(out, before) == before
        for kind in ("tag", "choice"):
            shutil.copytree(tmp_path / "new" / f"3-{kind}", tmp_path / out.name / "data" / f"new {kind}")
        assert scores(out, tmp_path / out.name / "data") == {
            f"new {k}": results["tasks"][f"new {k}"]["test"] for k in ("tag", "choice")
        }
    assert store.open_bundle(shared)[1]["shared"] == bundle["shared"]


def test_tasks_with_slots_join_a_bundle_that_has_none(tmp_path):
    out = made(tmp_path / "run", ["classify", "pair"], 0, delta="mask")
    before = answers(out)
    add(out, new(tmp_path, "tag"))
    assert answers(out, before) == before and load(out).task("new tag").slot == 1
    add(out, new(tmp_path, "choice"), 0)
    add(out, new(tmp_path, "regress"))
    assert len(answers(out)) == 5


def test_adding_twice(run, tmp_path):
    add(run, new(tmp_path, "tag"))
    before = tiny.files(run)
    with pytest.raises(InputError, match="the bundle has a task 'new tag' already: give the new one another name, or remove"):
        add(run, new(tmp_path, "choice", "tag"))
    with pytest.raises(InputError, match="the bundle has a task 'pair' already"):
        add(run, {"tasks": {"pair": {"data": str(tiny.home() / "data" / "pair")}}})
    assert tiny.files(run) == before
    change.remove(run, "new tag")
    add(run, new(tmp_path, "tag", draw=4))  # other data under the old name
    assert len(answers(run)["new tag"]) == 6


@pytest.mark.parametrize("more", [{"delta": "adapter"}, {"backbone": "minilm"}, {"seed": 7}])
def test_a_plan_that_asks_for_another_bundle_is_refused(run, tmp_path, more):
    key = next(iter(more))
    with pytest.raises(InputError, match=f"a bundle has one {key}, here .*: leave {key} out of the plan"):
        add(run, new(tmp_path, "tag", **more))
    assert not list((run / "work").glob("add-*"))
    same = {k: v for k, v in tiny.plan(tiny.home() / "bert", tmp_path).items() if k != "tasks"}
    add(run, new(tmp_path, "tag") | same, 0)


@pytest.mark.parametrize("wrong", ["rows", "no file", "no tasks"])
def test_a_plan_that_fails_changes_nothing(run, tmp_path, wrong):
    plan = new(tmp_path, "tag")
    if wrong == "rows":
        (tmp_path / "new" / "3-tag" / "test.jsonl").write_text('{"tokens": ["a"], "label": ["O", "O"]}\n')
    if wrong == "no file":
        plan["tasks"]["new tag"]["data"] = str(tmp_path / "gone")
    if wrong == "no tasks":
        plan["tasks"] = {}
    before = tiny.files(run / "bundle") | {"results": (run / "results.json").read_bytes()}
    with pytest.raises(InputError):
        add(run, plan)
    assert tiny.files(run / "bundle") | {"results": (run / "results.json").read_bytes()} == before


def test_an_interrupted_add_goes_on_where_it_was(run, source, tmp_path):
    plan, before = new(tmp_path, "tag", "retrieve"), tiny.files(run / "bundle")
    whole = Path(shutil.copytree(source, tmp_path / "whole"))
    add(whole, plan)
    for stage in ("features", "probe", "delta"):

        def told(now: str, *said: Any, stage: str = stage) -> None:
            if now == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            add(run, plan, told=told)
        assert tiny.files(run / "bundle") == before
    results = add(run, plan)
    assert tiny.files(run / "bundle") == tiny.files(whole / "bundle")
    assert tiny.timeless(results) == tiny.timeless(read_json(whole / "results.json"))


@pytest.mark.parametrize("file", [r"run/bundle/\w+.safetensors", "run/bundle/bundle.json"])
def test_a_full_disk_leaves_the_old_bundle(run, tmp_path, monkeypatch, file):
    plan, before, whole = new(tmp_path, "retrieve"), answers(run), tiny.files(run / "bundle")
    real = cache.os.replace

    def replace(old: Any, path: Any) -> None:
        if re.search(file + "$", str(path)):
            raise OSError(28, "No space left on device")
        real(old, path)

    monkeypatch.setattr(cache.os, "replace", replace)
    with pytest.raises(WorkError, match="cannot be written: No space left on device"):
        add(run, plan)
    monkeypatch.undo()
    now = tiny.files(run / "bundle")
    assert {n: now[n] for n in whole} == whole and not any(n.endswith(".part") for n in now) and answers(run) == before
    add(run, plan)
    assert answers(run, before) == before and answers(run)["new retrieve"]


def test_a_bundle_of_a_smaller_rank_takes_tasks_of_that_rank(tmp_path):
    """The rank of the plan was halved to fit a budget: what is added has the bundle's rank, not the plan's."""
    names, delta = ["classify", "pair"], {"lora": {"rank": 4}, "at": tiny.ROLES, "lr": 1e-2}
    out = made(tmp_path / "run", names, delta=delta, budget={"kilobytes_per_task": 3.0}, stages=["features", "probe", "delta"])
    assert any(note.startswith("rank ") for note in read_json(out / "results.json")["notes"])
    before = answers(out)
    add(out, new(tmp_path, "tag"))
    assert answers(out, before) == before and len(answers(out)["new tag"]) == 6
    with pytest.raises(InputError, match="slots of one bundle are of one size: leave kilobytes_per_task out of the plan"):
        add(out, new(tmp_path, "choice", budget={"kilobytes_per_task": 0.01}))
    assert answers(out, before) == before


def test_a_task_that_speaks_joins_tasks_that_do_not(tmp_path):
    out = made(tmp_path / "run", ["classify", "tag"], -1, "gpt2")
    before = answers(out)
    add(out, new(tmp_path, "generate"))
    assert answers(out, before) == before and all(isinstance(a["prediction"], str) for a in answers(out)["new generate"])


# ---- remove


def test_what_is_removed_is_gone_and_the_rest_as_it_was(run):
    before, files = answers(run), tiny.files(run / "bundle")
    record = store.open_bundle(run)[1]["tasks"]["retrieve"]
    results = change.remove(run, "retrieve")
    gone = set(files) - set(tiny.files(run / "bundle"))
    assert gone == {record["file"], record["corpus"]} and list(results["tasks"]) == ["classify", "pair", "regress"]
    assert answers(run) == {n: a for n, a in before.items() if n != "retrieve"}
    for name, said in (("retrieve", "no task 'retrieve'"), ("clasify", "did you mean classify")):
        with pytest.raises(InputError, match=said):
            change.remove(run, name)
    change.remove(run, "pair")
    change.remove(run, "regress")
    with pytest.raises(InputError, match="classify is the only task"):
        change.remove(run, "classify")
    assert list(load(run).tasks) == ["classify"]


def test_a_shared_slot_stays_while_somebody_uses_it(tmp_path):
    out = made(tmp_path / "run", ["classify", "pair", "tag"], 1)
    slot, before = store.open_bundle(out)[1]["shared"]["file"], answers(out)
    change.remove(out, "pair")
    assert store.open_bundle(out)[1]["shared"] == {"file": slot, "tasks": ["classify", "tag"]}
    assert answers(out) == {n: before[n] for n in ("classify", "tag")}
    change.remove(out, "tag")
    assert answers(out) == {"classify": before["classify"]} and (out / "bundle" / slot).exists()


# ---- merge


@pytest.mark.parametrize("method", ["mean", "ties", {"task_arithmetic": {"scale": 0.3}}])
def test_a_merge_is_measured_and_loads(run, method):
    before = tiny.files(run / "bundle")
    found = change.merge(run, method)
    results = read_json(run / "results.json")["tasks"]
    data = tiny.home() / "data"
    assert {n: t["single"] for n, t in found["tasks"].items()} == {n: t["test"] for n, t in results.items()}
    assert {n: t["merged"] for n, t in found["tasks"].items()} == scores(run / "merged", data)
    for k in ("single", "merged"):
        assert found[f"mean_{k}"] == pytest.approx(sum(t[k] for t in found["tasks"].values()) / 4)
    assert tiny.files(run / "bundle") == before and {load(run / "merged").task(n).slot for n in results} == {1}
    assert read_sealed(run / "merged" / "results.json") == found and Path(found["bundle"]) == run / "merged"


def test_a_plan_s_merges_are_offered_beside_the_deltas(tmp_path):
    """The best of them on validation: measured, a run of its own, and what it saves in bytes and costs in score is told."""
    names, data = ["classify", "pair", "regress"], tiny.home() / "data"
    merges = ["mean", {"task_arithmetic": {"scale": 0.3}}, "fisher", {"adamerging": {"steps": 2}}]
    plan = tiny.plan(tiny.home() / "bert", data, names) | {"merge": merges, "stages": ["features", "probe", "delta"]}
    with rung(-1):
        results = tiny.fit(plan, tmp_path / "run", steps=4)
    found = results["merged"]
    assert [*found["valid"]] == [str(m) for m in merges] and [*found["tasks"]] == names
    best = max(found["valid"], key=found["valid"].__getitem__)
    assert found["method"]["method"].partition(".")[2] in best
    assert {n: t["single"] for n, t in found["tasks"].items()} == {n: t["test"] for n, t in results["tasks"].items()}
    told = {n: pytest.approx(t["merged"], abs=1e-6) for n, t in found["tasks"].items()}
    assert scores(tmp_path / "run" / "merged", data) == told
    sizes = [store.size(store.parts_of(*of)[0]) for of in slots_of(tmp_path / "run")]
    (one,) = {of for of in slots_of(tmp_path / "run" / "merged", shared=True)}
    assert found["kilobytes_saved"] == round((sum(sizes) - store.size(store.parts_of(*one)[0])) / 1000, 1)
    assert "one model for all" in (tmp_path / "run" / "report.html").read_text()
    with rung(-1):
        again = tiny.fit(plan | {"merge": None}, tmp_path / "run", overwrite=True, steps=4)
    assert "merged" not in again and not (tmp_path / "run" / "merged").exists()


def slots_of(run, shared=False):
    folder, bundle = store.open_bundle(run)
    return [(folder, t["file"]) for t in ([bundle["shared"]] if shared else bundle["tasks"].values())]


@pytest.mark.parametrize(("more", "said"), [
    ({"merge": ["ties", "tis"]}, "no merge 'tis'; did you mean ties"),
    ({"merge": "mean", "delta": "prompt"}, "changes activations, not weights"),
    ({"merge": "mean", "delta": ["lora", "ia3"]}, "one kind of delta: .* anabranch merge RUN"),
])  # fmt: skip
def test_merges_that_fit_cannot_offer_are_refused_before_the_work(tmp_path, more, said):
    with pytest.raises(InputError, match=said):
        tiny.fit(tiny.plan(tiny.home() / "bert", tiny.home() / "data", ["classify", "pair"]) | more, tmp_path / "run")
    assert not (tmp_path / "run" / "work" / "features").exists()


def test_a_merge_that_cannot_be_of_these_tasks_costs_no_work(tmp_path):
    names, merges = ["classify", "pair", "regress"], ["slerp", {"genknowsub": {"general": 3}}]
    found = read_json(made(tmp_path / "one", names, merge=[*merges, "mean"]) / "results.json")
    assert [*found["merged"]["valid"]] == ["mean"] and found["merged"]["method"]["method"] == "merge.mean"
    assert read_json(tmp_path / "one" / "merged" / "results.json")["valid"] == found["merged"]["valid"]
    left = [note for note in found["notes"] if "is left out: " in note]
    assert len(left) == 2 and "exactly 2 tasks, got 3" in left[0] and "subtracts the last 3 slots" in left[1]
    found = read_json(made(tmp_path / "none", names, merge=merges[:1]) / "results.json")
    assert "merged" not in found and not (tmp_path / "none" / "merged").exists()


def test_nothing_to_merge_is_noted(tmp_path):
    found = read_json(made(tmp_path / "run", ["classify", "pair"], 0, merge="mean") / "results.json")
    assert "merged" not in found and any("nothing was merged: 0 of the tasks" in note for note in found["notes"])


def test_the_mean_of_equal_slots_answers_as_each(run):
    """bf16 of a dense dW is not bf16 of its factors, so nearly."""
    folder, bundle = store.open_bundle(run)
    packed, *_ = store.parts_of(folder, bundle["tasks"]["classify"]["file"])
    _, head, post, *_ = store.parts_of(folder, bundle["tasks"]["regress"]["file"])
    bundle["tasks"]["regress"] = store.save_task(folder, bundle["tasks"]["regress"], packed, head, post)
    store.save(folder, bundle)
    before = answers(run, ["classify", "regress"])
    change.merge(run, "mean", tasks=["classify", "regress"])
    after = answers(run / "merged")
    for a, b in zip(before["classify"], after["classify"], strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=0.02)
    for a, b in zip(before["regress"], after["regress"], strict=True):
        assert a["prediction"] == pytest.approx(b["prediction"], abs=1)


def test_added_tasks_are_merged_and_measured_too(run, tmp_path):
    results = add(run, new(tmp_path, "tag"))
    found = change.merge(run, "mean", tasks=["classify", "new tag"], name="two")
    assert found["tasks"]["new tag"]["single"] == results["tasks"]["new tag"]["test"]
    assert isinstance(found["tasks"]["new tag"]["merged"], float) and len(answers(run / "two")) == 2


def test_what_cannot_be_merged(run, tmp_path):
    for tasks, said in ((["classify"], "at least two tasks"), (["classify", "nope"], "no task 'nope'")):
        with pytest.raises(InputError, match=said):
            change.merge(run, "mean", tasks=tasks)
    with pytest.raises(InputError, match="no merge 'meen'; did you mean mean"):
        change.merge(run, "meen")
    add(run, new(tmp_path, "choice"), 0)
    with pytest.raises(InputError, match="new choice answers from the probe and has no delta to merge"):
        change.merge(run, "mean", tasks=["classify", "new choice"])
    prompts = made(
        tmp_path / "prompts", ["classify", "pair"], delta={"prompt": {"tokens": 2}}, stages=["features", "probe", "delta"]
    )
    with pytest.raises(InputError, match="changes activations, not weights"):
        change.merge(prompts, "mean")
    mixed = made(tmp_path / "two", ["classify", "pair"], delta=["lora", "prompt"], stages=["features", "probe", "delta"])
    with pytest.raises(InputError, match="changes activations, not weights"):
        change.merge(mixed, "mean")
    for out in (run, prompts, mixed):
        assert not (out / "merged").exists()


NAMES = [
    *("", ".", "..", "../x", "a/b", "a\\b", "a/", "-x", ".x", "x\n", "x\0", "x.", "a" * 61),
    *("bundle", "Bundle", "work", "results.json", "report.html", "plan.json", "mine", "file", "link", "full", "broken"),
]


@pytest.fixture
def unloaded(monkeypatch):
    """Nothing heavy may be reached."""
    monkeypatch.setattr(change, "load", lambda *_: pytest.fail("loads the model"))


def held(run: Path) -> None:
    """What somebody else may keep in a run's folder."""
    (run / "mine").mkdir()
    (run / "mine" / "notes.txt").write_text("mine")
    (run / "file").write_text("mine")
    merged = Path(shutil.copytree(run / "bundle", run / "full" / "bundle")).parent
    bundle = store.open_bundle(merged)[1]
    store.save(merged / "bundle", bundle | {"made": bundle["made"] | {"merge": "ties"}})
    shutil.copytree(merged, run / "broken")
    (merged / "notes.txt").write_text("mine")
    (run / "broken" / "bundle" / "bundle.json").write_text("{")
    (run / "link").symlink_to(run / "full")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("name", NAMES)
def test_a_merge_never_writes_over_what_is_there(run, capsys, name):
    held(run)
    before = tiny.files(run.parent)
    with pytest.raises(
        InputError, match="plain folder name, such as merged|something else than an earlier merge .*: take another"
    ):
        change.merge(run, "ties", name=name)
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(run), "--merge", "ties", "--name", name])
    assert ended.value.code == 2 and "such as merged" in capsys.readouterr().err
    assert tiny.files(run.parent) == before


def test_a_merge_takes_the_place_of_an_earlier_one(run):
    change.merge(run, "mean", tasks=["classify", "pair"], name="two tasks-1.5")
    for method in ("mean", "ties"):
        change.merge(run, method, tasks=["classify", "regress"], name="two tasks-1.5")
    assert store.open_bundle(run / "two tasks-1.5")[1]["made"]["merge"] == "ties"
    assert set(load(run / "two tasks-1.5").tasks) == {"classify", "regress"} and load(run).tasks.keys() >= {"classify", "pair"}


FINISHED = [n for n in every("merge") if not trains(find(f"merge.{n}"))]
APART = {"genknowsub", "scalearn", "tall_masks", "tvq", "twin"}  # merges that keep a model for each task


def few(method: str) -> dict[str, Any]:
    """A merge by its name, with few steps where it has any."""
    known = signature(find(f"merge.{method}")).parameters
    return {method: {n: v for n, v in {"steps": 2, "rank": 4, "rounds": 2}.items() if n in known}}


@pytest.mark.parametrize("method", FINISHED)
def test_every_merge_of_finished_deltas_works_on_a_run(run, method):
    """With the rows of the run's plan where it asks for some."""
    names = ["classify", "pair", *["regress"] * (method == "genknowsub")]  # which takes the last from the others
    found = change.merge(run, few(method), tasks=names)
    assert [*found["tasks"]] == names[:2] and found["one"] == (method not in APART)
    told = scores(run / "merged", tiny.home() / "data")
    assert {n: t["merged"] for n, t in found["tasks"].items()} == told
    kinds = {load(run / "merged").task(n).slot for n in names[:2]}
    assert kinds == ({1, 2} if method in APART - {"genknowsub"} else kinds) and 0 not in kinds


@pytest.mark.parametrize(("method", "more"), [*((n, {}) for n in sorted(APART)), ("tvq", {"bits": 2, "base": 3}), ("lorahub", {}),
                                              ("surgery", {}), ("atm", {}), ("composable_sft", {}), ("tangent", {})])  # fmt: skip
def test_every_form_of_merge_is_a_run_of_its_own(tmp_path, method, more):
    """In a plan: what was measured while it was made is what the bundle answers, whatever the merge keeps for a task."""
    names, data, spec = ["classify", "retrieve", "pair", "regress"], tiny.home() / "data", {method: few(method)[method] | more}
    with rung(-1):
        plan = tiny.plan(tiny.home() / "bert", data, names, merge=spec, stages=["features", "probe", "delta"])
        results = tiny.fit(plan, tmp_path / "run", steps=4)
    found, made = results["merged"], load(tmp_path / "run" / "merged")
    kept = names[:3] if method == "genknowsub" else names
    assert [*found["tasks"]] == kept and found["one"] == (method not in APART | {"composable_sft"})
    told = {n: pytest.approx(t["merged"], abs=1e-6) for n, t in found["tasks"].items()}
    assert scores(tmp_path / "run" / "merged", data) == told
    assert made.bundle.get("tangent", False) == (method == "tangent")
    assert all(bool(made.task(n).after) == (method == "surgery") for n in kept)
    assert found["one"] == ("is one model for all" in (tmp_path / "run" / "report.html").read_text())
    own, merged = (
        sum(p.stat().st_size for p in (tmp_path / "run" / n).glob("*.safetensors")) for n in ("bundle", "merged/bundle")
    )
    assert (own - merged) / 1000 == pytest.approx(found["kilobytes_saved"], abs=40)  # files have heads of their own


def test_what_answers_from_more_than_weights_stays_in_its_bundle(tmp_path):
    for method in ("surgery", "tangent"):
        run = made(tmp_path / method, ["classify", "pair"], merge=few(method), stages=["features", "probe", "delta"]) / "merged"
        with pytest.raises(InputError, match=f"more than a change of f's weights, by merge .*{method}"):
            change.export(run, "classify", tmp_path / "out")
        with pytest.raises(InputError, match=f"merge .*{method}.* no gate can mix it"):
            Library([run])
        change.remove(run, "pair")
        assert [*answers(run)] == ["classify"]


@pytest.mark.parametrize("method", ["fisher", {"adamerging": {"steps": 2}}])
def test_a_merge_of_a_run_is_the_one_of_the_plan(tmp_path, method):
    """With rows of the same tasks in the same order, and of tasks in the middle of the bundle."""
    names, stages = ["classify", "pair", "regress"], ["features", "probe", "delta"]
    run = made(tmp_path / "run", names, merge=method, stages=stages)
    change.merge(run, method, name="later")
    offered, later = (store.parts_of(*next(iter(slots_of(run / n, shared=True))))[0] for n in ("merged", "later"))
    assert offered.keys() == later.keys() and any(t.abs().max() > 0 for t in later.values())
    for key, t in later.items():
        assert torch.allclose(t.float(), offered[key].float(), rtol=0.02, atol=1e-4), key
    change.merge(run, method, tasks=["regress", "pair"], name="other")
    assert load(run / "other").tasks.keys() == {"regress", "pair"}


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("method", [n for n in every("merge") if n not in FINISHED])
def test_merges_that_train_are_refused_before_the_work(run, method):
    with pytest.raises(
        InputError, match=f"merge {method} trains in several stages.*: write merge: {method} .* one of adamerging"
    ):
        change.merge(run, method)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(("method", "tasks", "said"), [
    ("ties", ["classify", "classify"], "classify is named twice"),
    ("ties", ["pair", "classify", "pair"], "pair is named twice"),
    ("ties", [], "at least two tasks with own deltas, got 0"),
    ("slerp", None, "slerp merges 2 tasks, got 4: say which, as in --tasks classify,pair"),
    ({"layer_swapping": {}}, None, "layer_swapping merges 2 tasks, got 4"),
    ("fisher", ["gone", "pair"], "task gone: .*nowhere"),
    ({"adamerging": {"steps": 1}}, ["unplanned", "pair"], "adamerging looks at rows .* none of unplanned: .* such as ties"),
])  # fmt: skip
def test_merges_of_these_tasks_that_cannot_be_are_refused_before_the_work(run, tmp_path, method, tasks, said):
    folder, bundle = store.open_bundle(run)
    if tasks and (tasks[0] in ("gone", "unplanned")):
        bundle["tasks"][tasks[0]] = bundle["tasks"]["classify"]
        bundle["made"]["plan"]["tasks"] |= {"gone": {"data": str(tmp_path / "nowhere")}}
        store.save(folder, bundle)
    with pytest.raises(InputError, match=said):
        change.merge(run, method, tasks=tasks)


def test_what_a_merge_finds_out_while_it_works_is_said(run, tmp_path):
    with pytest.raises(InputError, match="consensus with least: 3 merges at least 3 tasks, got 2"):
        change.merge(run, {"consensus": {"least": 3}}, tasks=["classify", "pair"])
    folder, bundle = store.open_bundle(run)
    other = tiny.folder(tmp_path / "other", "pair")
    bundle["made"]["plan"]["tasks"]["classify"] = {"data": str(other)}
    store.save(folder, bundle)
    with pytest.raises(InputError, match="task classify: its rows have other labels than when it was fitted"):
        change.merge(run, "fisher", tasks=["classify", "pair"])
    assert not (run / "merged").exists()


def test_deltas_of_several_entries_are_merged_by_their_common_change_of_f(tmp_path):
    delta = [
        {"lora": {"rank": 2}, "at": "attention.query[-1:]"},
        {"mask": {}, "at": ["attention.query[-1:]", "mlp.in[-1:]"], "lr": 1.0},
    ]
    names, stages = ["classify", "pair", "regress"], ["features", "probe", "delta"]
    run = made(tmp_path / "run", names, delta=delta, stages=stages)
    found, model = change.merge(run, "mean"), load(run)
    f, asked = model.backbone.f, ["pair", "classify"]
    each = [changes(f, bank, model.task(n).slot) for n in names for bank in model.banks]
    merged = load(run / "merged")
    whole = changes(f, merged.banks[0], 1)
    assert len(model.banks) == 2 and len(whole) == 2 and found["tasks"].keys() == set(names)
    for site, (dW, _) in whole.items():
        want = sum(change[site][0] for change in each if site in change) / 3
        assert want.abs().max() > 0 and torch.allclose(dW, want, rtol=0.01, atol=1e-4)  # stored in bf16
    for method in ("fisher", {"adamerging": {"steps": 1}}):
        assert change.merge(run, method, tasks=asked)["tasks"].keys() == set(asked)


def test_changes_of_what_is_damaged_or_no_bundle(run, tmp_path):
    file = store.open_bundle(run)[1]["tasks"]["classify"]["file"]
    (run / "bundle" / file).write_bytes(b"")
    for call in (lambda: change.merge(run, "mean"), lambda: change.export(run, "classify", tmp_path / "x")):
        with pytest.raises(WorkError, match=f"{file} is damaged"):
            call()
    for call in (
        lambda: change.remove(tmp_path, "a"),
        lambda: add(tmp_path, new(tmp_path, "tag")),
        lambda: change.merge(tmp_path, "mean"),
    ):
        with pytest.raises(InputError, match="is not a run or a bundle"):
            call()
    assert not (tmp_path / "x").exists()


def test_a_bundle_whose_correction_or_space_cannot_be_is_told_of(tmp_path):
    """What a bundle says is data from outside, with checksums that fit."""
    run = made(tmp_path / "run", ["classify", "pair"], merge=few("surgery"), stages=["features", "probe", "delta"]) / "merged"
    folder, bundle = store.open_bundle(run)
    record = bundle["tasks"]["pair"]
    parts = store.parts_of(folder, record["file"])
    for after in ({"down": torch.ones(3, 2), "up": torch.ones(2, 3)}, {"down": torch.ones(32, 2)}):
        bundle["tasks"]["pair"] = store.save_task(folder, record, parts.slot, parts.head, parts.post, after=after)
        store.save(folder, bundle)
        assert answers(run, ["classify"])
        with pytest.raises(WorkError, match="task pair: its head does not go with its record"):
            answers(run, ["pair"])
    slot = store.parts_of(folder, bundle["shared"]["file"]).slot
    both = store.put(folder, {f"slot/{i}{n[1:]}": t.clone() for n, t in slot.items() for i in (0, 1)})
    shared = bundle["shared"] | {"file": both}
    store.save(folder, bundle | {"tangent": True, "banks": bundle["banks"] * 2, "shared": shared})
    with pytest.raises(WorkError, match="describes no bundle"):
        load(run)
