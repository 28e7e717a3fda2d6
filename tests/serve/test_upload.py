"""A task from an archive: what is taken, what is refused and how, and that nothing else moves by a bit."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import _tiny as tiny
from serve import _made as made

from anabranch.engine import store
from anabranch.engine.backbone import twin
from anabranch.engine.cache import read_json, write_json, write_tensors
from anabranch.engine.model import Model, load
from anabranch.errors import InputError
from anabranch.serve import upload

TASKS = {"classify": "classify", "pair": "pair", "tag": "tag probe", "a": "regress shared", "b": "classify shared"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return made.bundle(tmp_path_factory.mktemp("upload") / "run", TASKS)


@pytest.fixture
def run(source, tmp_path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "run"))


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    return made.bundle(tmp_path_factory.mktemp("one") / "run", {"new": "retrieve"}, seed=3)


def answers(model: Model, *but: str) -> dict[str, Any]:
    return {n: model.predict(n, made.ROWS[t["kind"]]) for n, t in model.tasks.items() if n not in but}


def put(run: Path, live: Model, data: bytes, name: str, most: int = 10**7) -> None:
    with upload.checked(data, name, live, twin(live.backbone), most) as (model, theirs):
        upload.keep(run, model, theirs, name)
        live.take(model, theirs, name)


# ---- what is taken


@pytest.mark.parametrize("said", ["retrieve", "classify probe", "pair shared", "choice"])
def test_a_task_is_taken_over_with_its_answers_and_the_others_keep_theirs(run, tmp_path, said):
    other = made.bundle(tmp_path / "other", {"theirs": said}, seed=3)
    live, kind = load(run), said.split()[0]
    before, wanted = answers(live), load(other).predict("theirs", made.ROWS[kind])
    put(run, live, made.zipped(other), "new")
    again = load(run)
    assert answers(live, "new") == answers(again, "new") == before
    assert live.predict("new", made.ROWS[kind]) == again.predict("new", made.ROWS[kind]) == wanted
    assert again.tasks == live.tasks and again.tasks["new"]["rung"] == ("probe" if "probe" in said else "delta")


def test_a_task_is_replaced(run, one):
    live = load(run)
    before, wanted = answers(live, "b"), load(one).predict("new", made.ROWS["retrieve"])
    put(run, live, made.zipped(one), "b")
    again = load(run)
    assert answers(live, "b") == answers(again, "b") == before
    assert live.predict("b", made.ROWS["retrieve"]) == again.predict("b", made.ROWS["retrieve"]) == wanted
    assert store.open_bundle(run)[1]["shared"]["tasks"] == ["a"] and list(live.served)[-1] == "b"
    assert "b" not in store.open_bundle(run)[1]["made"]["plan"]["tasks"]  # it names data that is not this task's


@pytest.mark.parametrize("gone", TASKS)
def test_a_task_is_dropped_and_the_others_keep_their_answers(run, gone):
    live = load(run)
    before = answers(live, gone)
    live.drop(gone)
    upload.drop(run, gone)
    upload.drop(run, gone)  # it may be gone already
    assert answers(live) == answers(load(run)) == before and set(live.tasks) == set(before)
    with pytest.raises(InputError, match="no task"):
        live.task(gone)
    assert len(live.banks[0]) == 3 - (gone in ("classify", "pair"))


def test_slots_come_and_go_and_their_places_are_used_again(run, one, tmp_path):
    live, second = load(run), made.bundle(tmp_path / "second", {"x": "classify"}, seed=8)
    before = answers(live)
    wanted = load(second).predict("x", made.ROWS["classify"])
    for _ in range(3):
        put(run, live, made.zipped(one), "new")
        put(run, live, made.zipped(second), "x")
        live.drop("new")
        assert live.predict("x", made.ROWS["classify"]) == wanted and answers(live, "x") == before
        live.drop("x")
    assert answers(live) == before and len(live.banks[0]) == 3


def test_of_a_bundle_of_several_the_named_task_is_taken(run, source):
    live = load(run)
    live.drop("pair")
    put(run, live, made.zipped(source, "bundle/"), "pair")
    assert live.predict("pair", made.ROWS["pair"]) == load(source).predict("pair", made.ROWS["pair"])
    with pytest.raises(InputError, match="the archive has 5 tasks, none of them 'pear'; did you mean pair"):
        put(run, live, made.zipped(source), "pear")


# ---- what is refused


def changed(run: Path, place: Path, **fields: Any) -> Path:
    """A copy of a bundle whose only record has other fields, and a checksum that fits."""
    folder, bundle = store.open_bundle(Path(shutil.copytree(run, place)))
    bundle["tasks"]["new"] |= fields
    store.save(folder, bundle)
    return place


BAD = [
    (lambda good: b"no zip", "cannot be read .*zip -j task.zip RUN/bundle/"),
    (lambda good: b"", "cannot be read"),
    (lambda good: made.archive({}), "no bundle.json in it"),
    (lambda good: made.zipped(good)[:-200], "cannot be read"),
    (lambda good: made.zipped(good, **{"../evil.safetensors": b""}), r"holds '\.\./evil.safetensors', which is no file of a bundle"),
    (lambda good: made.zipped(good, **{"/etc/passwd": b""}), "holds '/etc/passwd'"),
    (lambda good: made.zipped(good, **{"..\\x.jsonl": b""}), "which is no file of a bundle"),
    (lambda good: made.zipped(good, **{"code.py": b""}), "holds 'code.py'"),
    (lambda good: made.zipped(good, "../"), r"holds '\.\./"),
    (lambda good: made.zipped(good, "bundle/", **{"bundle/../x.jsonl": b""}), "which is no file of a bundle"),
    (lambda good: made.zipped(good, **{"bundle/bundle.json": b"{}"}), "holds a file twice"),
    (lambda good: made.zipped(good, **{f"{0:032x}.safetensors": bytes(11_000_000)}), "holds 110[0-9]* bytes, at most 10000000"),
    (lambda good: made.zipped(good, **{"bundle.json": b"{"}), "bundle.json is damaged"),
    (lambda good: made.zipped(good, **{"bundle.json": b"[]"}), "bundle.json is damaged"),
    (lambda good: made.zipped(good, **{"bundle.json": b'{"format": 1}'}), "checksum does not fit"),
    (lambda good: made.zipped(good, **{"bundle.json": b'{"format": 99}'}), "this version reads up to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_bad_archives_are_refused_in_words_and_leave_nothing(run, one, bad, said, tmp_path):
    live, files = load(run), tiny.files(run)
    with pytest.raises(InputError, match=said) as refused:
        put(run, live, bad(one), "new")
    assert "/tmp" not in str(refused.value) and "anabranch-" not in str(refused.value)
    assert tiny.files(run) == files and set(live.served) == set(TASKS)


@pytest.mark.parametrize("fields", [
    {"kind": "sing"}, {"kind": None}, {"kind": "../classify"}, {"file": "../x"}, {"file": None}, {"file": 3}, {"corpus": "/etc/passwd"},
    {"max_length": "long"}, {"max_length": 0}, {"kind": "classify"}, {"labels": 3}, {"rung": "shared"}, {"two": "yes"}, {"rung": "best"}, {"valid": "good"},
])  # fmt: skip
def test_records_that_make_no_sense_are_refused(run, one, fields, tmp_path):
    live, bad = load(run), changed(one, tmp_path / "bad", **fields)
    if fields in ({"file": None},):  # a retrieval task without a slot or a head answers from f alone: that is one
        put(run, live, made.zipped(bad), "new")
        assert live.predict("new", [{"text": "x"}])
        return
    with pytest.raises(InputError, match="archive"):
        put(run, live, made.zipped(bad), "new")
    assert set(live.served) == set(TASKS)


def test_a_bundle_of_another_form_or_backbone_is_refused(run, tmp_path):
    live = load(run)
    with pytest.raises(
        InputError,
        match="slots of one bundle are of one form, here delta.lora .*'rank': 4.* the archive has delta.lora .*'rank': 2",
    ):
        put(run, live, made.zipped(made.bundle(tmp_path / "rank", {"new": "classify"}, rank=2)), "new")
    tiny.bert(tmp_path / "bert", seed=7)
    folder, bundle = store.open_bundle(made.bundle(tmp_path / "weights", {"new": "classify"}))
    store.save(folder, bundle | {"backbone": {"id": "theirs", "fingerprint": "f" * 32}})
    with pytest.raises(InputError, match="was made for backbone theirs with fingerprint ffffffff, got"):
        put(run, live, made.zipped(tmp_path / "weights"), "new")
    folder, bundle = store.open_bundle(made.bundle(tmp_path / "low", {"new": "classify probe"}))
    for site in bundle["banks"][0]["sites"]:
        site["depth"] = 0
    store.save(folder, bundle)
    with pytest.raises(InputError, match="heads read block 0 of the backbone, those of this bundle block 1"):
        put(run, live, made.zipped(tmp_path / "low"), "new")
    assert set(live.served) == set(TASKS)


def test_tensors_that_are_damaged_or_not_finite_are_refused(run, one, tmp_path):
    live = load(run)
    name = next(p.name for p in (one / "bundle").glob("*.safetensors"))
    with pytest.raises(InputError, match="the archive/.* is damaged"):
        put(run, live, made.zipped(one, **{name: b"x" * 100}), "new")
    write_tensors(tmp_path / name, {"slot/x": torch.zeros(2)})
    with pytest.raises(InputError, match="is damaged: its content does not fit its name"):
        put(run, live, made.zipped(one, **{name: (tmp_path / name).read_bytes()}), "new")
    sick = made.bundle(tmp_path / "sick", {"new": "classify"})
    folder, bundle = store.open_bundle(sick)
    parts, sick_head = store.parts_of(folder, bundle["tasks"]["new"]["file"]), {"b": torch.full((3,), float("nan"))}
    bundle["tasks"]["new"] = store.save_task(folder, bundle["tasks"]["new"], parts.slot, parts.head | sick_head, parts.post)
    store.save(folder, bundle)
    with pytest.raises(InputError, match="the archive: task new: its stored delta or head holds NaN"):
        put(run, live, made.zipped(sick), "new")
    assert set(live.served) == set(TASKS)


@pytest.mark.parametrize("name", ["all", "../x", "a/b", "", ".hidden", "a\nb"])
def test_names_are_those_of_plans(run, one, name):
    with pytest.raises(InputError, match="cannot name a task"):
        put(run, load(run), made.zipped(one), name)


def test_a_locked_archive_is_refused(run, one):
    data = bytearray(made.zipped(one))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + at] |= 1
            place = data.find(mark, place + 4)
    with pytest.raises(InputError, match="the archive is encrypted"):
        put(run, load(run), bytes(data), "new")


def test_what_unpacks_to_more_than_it_says_is_refused(run, one):
    data = made.zipped(one, **{f"{0:016x}.jsonl": bytes(3_000_000)})
    size = (3_000_000).to_bytes(4, "little")
    lying = data.replace(size, (1000).to_bytes(4, "little"))
    assert lying != data and zipfile.is_zipfile(__import__("io").BytesIO(lying))
    with pytest.raises(InputError, match="cannot be read"):
        put(run, load(run), lying, "new")


def test_json_that_is_no_bundle_is_refused(run, tmp_path):
    bundle: dict[str, Any] = {"format": 1, "backbone": {"id": "x"}}
    write_json(tmp_path / "b" / "bundle.json", bundle | {"sum": store.digest({"backbone": {"id": "x"}})})
    assert read_json(tmp_path / "b" / "bundle.json")["format"] == 1
    data = made.archive({"bundle.json": json.dumps(bundle | {"sum": store.digest({"backbone": {"id": "x"}})}).encode()})
    with pytest.raises(InputError, match="no task that works here: KeyError"):
        put(run, load(run), data, "new")
