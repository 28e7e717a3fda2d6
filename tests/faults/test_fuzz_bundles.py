"""Bundles whose bytes, headers or words were changed: refused by name, or the same answers. Never another error."""

import json
import random
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import _tiny as tiny
from faults import _soak
from faults._strategies import altered, harmed
from hypothesis import given
from hypothesis import strategies as st
from serve import _made as made

from anabranch.engine import store
from anabranch.engine.backbone import twin
from anabranch.engine.cache import checksum, digest, read_tensors
from anabranch.engine.model import load
from anabranch.errors import InputError, WorkError
from anabranch.serve import upload

TASKS = {"a": "classify", "b": "pair", "c": "tag probe", "d": "retrieve", "e": "regress shared", "f": "choice shared"}
ROWS = {name: made.ROWS[kind.split()[0]][:3] for name, kind in TASKS.items()}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return made.bundle(tmp_path_factory.mktemp("bundles") / "run", TASKS)


@pytest.fixture(scope="module")
def bad(good, tmp_path_factory) -> Path:
    """Where changed copies are made, one after another."""
    return tmp_path_factory.mktemp("changed")


@pytest.fixture(scope="module")
def wanted(good) -> dict[str, Any]:
    return answers(good)


def answers(run: Path) -> dict[str, Any]:
    model = load(run)
    return {name: model.predict(name, ROWS[name]) for name in model.tasks if name in ROWS}


def copied(good: Path, bad: Path) -> Path:
    shutil.rmtree(bad / "run", ignore_errors=True)
    return Path(shutil.copytree(good, bad / "run"))


def parts(run: Path) -> list[Path]:
    """The bundle's files: what they are called depends on what they hold, their order here does not."""
    return sorted((run / "bundle").iterdir(), key=lambda p: (p.suffix, p.stat().st_size, p.name))


@_soak.fuzz(50)
@given(data=st.data(), nth=st.integers(0, 6))
def test_bytes_that_came_to_harm(good, bad, wanted, data, nth):
    run = copied(good, bad)
    path = parts(run)[nth % len(parts(run))]
    before = path.read_bytes()
    path.write_bytes(data.draw(harmed(before)))
    with _soak.within():
        try:
            assert answers(run) == wanted
        except WorkError as error:
            assert path.name in str(error) and "damaged" in str(error)
        except InputError as error:  # the number of the format may say that a newer version is needed
            assert path.name == "bundle.json" and "this version reads up to" in str(error)
        else:
            assert (
                path.name == "bundle.json"
                or path.read_bytes() == before
                or read_tensors(path)[0].keys() == read_tensors(good / "bundle" / path.name)[0].keys()
            )


HEADERS = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"about": '{"note": {}, "sum": "x"}'}}


@_soak.fuzz(50)
@given(header=altered(HEADERS), size=st.none() | st.integers(0, 2**64 - 1), rest=st.integers(0, 40))
def test_headers_of_tensors_that_say_odd_things(good, bad, header, size, rest):
    """Lengths of petabytes, shapes that do not fit, types that are none: of no file that is read this way."""
    path = bad / "x.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + bytes(rest))
    with _soak.within(), pytest.raises(WorkError, match="x.safetensors is damaged"):
        read_tensors(path)


def sealed(run: Path, bundle: Any) -> None:
    """Writes bundle.json with a checksum that fits, as somebody would who wants it to be believed."""
    body = {k: v for k, v in bundle.items() if k not in ("sum", "format")}
    text = json.dumps({"format": bundle.get("format", 1), "sum": digest(json.loads(json.dumps(body)))} | body)
    (run / "bundle" / "bundle.json").write_text(text)


def test_a_backbone_of_a_name_too_long_for_a_file_is_told_of(good, bad):
    run = copied(good, bad)
    bundle = json.loads((run / "bundle" / "bundle.json").read_text())
    bundle["backbone"]["id"] = 140 * "\u00e9"
    sealed(run, bundle)
    with pytest.raises(InputError, match="no backbone '\u00e9"):
        load(run)


@pytest.mark.parametrize(
    "table, said", [("gate", "without the table gate"), ("keys", "the table keys"), ("own", "not at the bank's sites")]
)
def test_tables_that_a_bank_lacks_are_told_of(good, bad, table, said):
    run = copied(good, bad)
    bundle = json.loads((run / "bundle" / "bundle.json").read_text())
    layout = bundle["banks"][0]["layout"]
    layout[table].popitem() if table == "own" else layout.pop(table)
    sealed(run, bundle)
    with pytest.raises(WorkError, match=said):
        load(run)


@_soak.fuzz(50)
@given(data=st.data())
def test_words_under_a_checksum_that_fits(good, bad, data):
    """What somebody else made may say anything: an answer or a refusal, and nothing is touched outside."""
    run = copied(good, bad)
    sealed(run, data.draw(altered(json.loads((run / "bundle" / "bundle.json").read_text()))))
    with _soak.within():
        try:
            answers(run)
        except (InputError, WorkError) as error:
            assert str(error).strip()


def test_an_archive_for_an_endless_backbone_is_refused_in_short(good, bad):
    live, _ = state(good, bad)
    run = copied(bad / "one", bad)
    bundle = json.loads((run / "bundle" / "bundle.json").read_text())
    bundle["backbone"]["fingerprint"] = [{"9" * 5000: 1}]
    sealed(run, bundle)
    with (
        pytest.raises(InputError, match="archive") as refused,
        upload.checked(made.zipped(run), "new", live, twin(live.backbone), 10**7),
    ):
        pass
    assert len(str(refused.value)) < 2000


@_soak.fuzz(40)
@given(data=st.data())
def test_archives_that_came_to_harm(good, bad, wanted, data):
    """As PUT /v1/tasks/NAME takes them: refused as a wrong request, or the tasks answer as before."""
    live, one = state(good, bad)
    archive = data.draw(harmed(one) | st.just(one))
    if archive == one or data.draw(st.booleans()):
        run = copied(bad / "one", bad)
        sealed(run, data.draw(altered(json.loads((run / "bundle" / "bundle.json").read_text()))))
        archive = made.zipped(run)
    name = data.draw(st.sampled_from(["new", "new", "a", "../x", "a/b", "", "all", "x" * 300, "\0", "é"]))
    served = set(live.served)
    with _soak.within():
        try:
            with upload.checked(archive, name, live, twin(live.backbone), 10**7) as (model, theirs):
                assert json.dumps(model.predict(theirs, [upload.SAMPLE]), allow_nan=False)
        except InputError as error:
            assert "/tmp" not in str(error).replace(live.backbone.id, "") and len(str(error)) < 2000, error
    assert set(live.served) == served
    assert live.predict("a", ROWS["a"]) == wanted["a"]


_state: list[Any] = []


def state(good: Path, bad: Path) -> tuple[Any, bytes]:
    """A model that serves, and a good archive."""
    if not _state:
        made.bundle(bad / "one", {"new": "retrieve"}, seed=3)
        _state[:] = [load(good), made.zipped(bad / "one")]
    return _state[0], _state[1]


@pytest.mark.parametrize("change", [
    lambda b: b["tasks"].update({"../../evil": b["tasks"]["a"]}), lambda b: b["tasks"].update({"/etc/passwd": b["tasks"]["a"]}),
    lambda b: b["tasks"].update({"a\0b": b["tasks"]["a"]}),
])  # fmt: skip
def test_a_tasks_name_is_no_path(good, tmp_path, change):
    """It is a key, and stays one."""
    run, before = Path(shutil.copytree(good, tmp_path / "a" / "b" / "run")), {p for p in tmp_path.rglob("*")}
    bundle = json.loads((run / "bundle" / "bundle.json").read_text())
    change(bundle)
    sealed(run, bundle)
    model, name = load(run), next(n for n in bundle["tasks"] if n not in TASKS)
    assert model.predict(name, ROWS["a"]) == model.predict("a", ROWS["a"])
    from anabranch.engine import change as changing

    changing.remove(run, name)
    assert {p for p in tmp_path.rglob("*")} - before <= {run / "results.json"} and answers(run) == answers(good)


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "../../secret.safetensors", "/etc/passwd", "..", ".", "", "a/../../secret.safetensors", 3, ["x"]],
)
@pytest.mark.parametrize("where", ["task", "corpus", "shared", "bank"])
def test_no_name_leads_out_of_the_bundle(good, tmp_path, where, name):
    run = Path(shutil.copytree(good, tmp_path / "a" / "run"))
    bundle = json.loads((run / "bundle" / "bundle.json").read_text())
    parts = store.get(run / "bundle", bundle["tasks"]["a"]["file"])
    content = checksum(parts)
    secret = run / "bundle" / bundle["tasks"]["a"]["file"]
    for outside in (tmp_path / "a" / "run" / "secret.safetensors", tmp_path / "a" / "secret.safetensors"):
        shutil.copy(secret, outside)
    entry = {
        "task": bundle["tasks"]["b"],
        "corpus": bundle["tasks"]["d"],
        "shared": bundle["shared"],
        "bank": bundle["banks"][0],
    }[where]
    entry["corpus" if where == "corpus" else "file"] = name
    sealed(run, bundle)
    empty = not name and where in ("task", "corpus", "bank")  # no file at all
    with (
        pytest.raises(WorkError, match=r"outside the bundle|is missing|describes no bundle|is damaged")
        if not empty
        else _soak.within()
    ):
        load(run)
    assert re.fullmatch(r"[0-9a-f]{32}", content)


@pytest.mark.parametrize(
    "text", ["[" * 5000, '{"format": 1, "a": ' + "9" * 5000 + "}", '{"format": 1, "a": ' + "[" * 900 + "]" * 900 + "}"]
)
def test_json_that_python_cannot_hold_is_damage(good, tmp_path, text):
    run = Path(shutil.copytree(good, tmp_path / "run"))
    (run / "bundle" / "bundle.json").write_text(text)
    with pytest.raises(WorkError, match=r"bundle\.json is damaged"):
        load(run)


@pytest.mark.parametrize("odd", [{"stage": []}, {"stage": -1}, {"routes": "1"}, {"routes": None}])
def test_a_bank_of_odd_numbers_is_refused(good, tmp_path, odd):
    run = Path(shutil.copytree(good, tmp_path / "run"))
    bundle = json.loads((run / "bundle" / "bundle.json").read_text())
    bundle["banks"][0] |= odd
    sealed(run, bundle)
    with pytest.raises(WorkError, match=f"describes no bundle.*{next(iter(odd))}"):
        load(run)


def test_an_archive_whose_task_has_no_record_is_refused(good, bad):
    live, _ = state(good, bad)
    run = copied(bad / "one", bad)
    bundle = json.loads((run / "bundle" / "bundle.json").read_text())
    for tasks, said in (({"new": None}, "the task's record"), ({"": None, "9" * 5000: None}, r"choose from , 9{96}\.\.\.$")):
        sealed(run, bundle | {"tasks": tasks})
        with (
            pytest.raises(InputError, match=said),
            upload.checked(made.zipped(run), "new", live, twin(live.backbone), 10**7),
        ):
            pass


def test_a_delta_of_petabytes_is_refused(good, tmp_path):
    run = Path(shutil.copytree(good, tmp_path / "run"))
    bundle = json.loads((run / "bundle" / "bundle.json").read_text())
    site = next(iter(bundle["banks"][0]["layout"]["own"]))
    bundle["banks"][0]["layout"]["own"][site]["a"] = [10**6, 10**6]
    sealed(run, bundle)
    with _soak.within(), pytest.raises(WorkError, match="describes no bundle"):
        load(run)


@pytest.mark.parametrize("odd", [{"start": []}, {"start": 3, "stop": 5}, {"d_in": 7}, {"depth": 0}, {"kind": "norm"},
                                 {"name": "encoder.layer.0"}, {"read": "encoder"}, {"name": "x.y"}])  # fmt: skip
def test_a_site_that_f_has_not_is_refused(good, tmp_path, odd):
    run = Path(shutil.copytree(good, tmp_path / "run"))
    bundle = json.loads((run / "bundle" / "bundle.json").read_text())
    bundle["banks"][0]["sites"][0] |= odd
    sealed(run, bundle)
    with pytest.raises(WorkError, match="describes no bundle"):
        load(run)


def test_opening_what_is_damaged_keeps_no_memory(good, bad):
    """Nor does opening what is whole."""
    rng, run = random.Random(0), copied(good, bad)
    files = [(p, p.read_bytes()) for p in parts(run)]

    def one(i: int) -> None:
        path, data = files[i % len(files)]
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        with suppress(InputError, WorkError):
            load(run)
        path.write_bytes(data)
        if i % 10 == 0:
            load(run)

    torch.manual_seed(0)
    _soak.flat(one, 40, 5000, room=30e6)
    assert tiny.files(run) == tiny.files(good)
