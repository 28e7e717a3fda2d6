"""Bundles: what is damaged is named, what changes leaves the rest alone, and every way of asking gives the same answer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import _tiny as tiny

from anabranch.engine import change, store
from anabranch.engine.cache import digest
from anabranch.engine.model import load
from anabranch.errors import InputError, WorkError

ROWS = [{"text": "the red cat walks"}, {"text": "a blue owl sits on it"}, {"text": "green"}]


def sealed(run: Path, bundle: dict[str, Any]) -> None:
    """Writes bundle.json with a checksum that fits, as somebody would who wants it to be believed."""
    bundle = {k: v for k, v in bundle.items() if k != "sum"}
    bundle["sum"] = digest({k: v for k, v in bundle.items() if k != "format"})
    (run / "bundle" / "bundle.json").write_text(json.dumps(bundle), encoding="utf-8")


def bundle_json(run: Path) -> dict[str, Any]:
    return json.loads((run / "bundle" / "bundle.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("suffix", [".safetensors", ".jsonl"])
def test_a_flipped_byte_in_any_file_is_named(tmp_path: Path, suffix: str) -> None:
    run = tiny.copied(tmp_path / "run")
    for file in sorted((run / "bundle").glob(f"*{suffix}")):
        good = file.read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        file.write_bytes(bytes(bad))
        with pytest.raises(WorkError, match=file.name):
            load(run)
        file.write_bytes(good)
    assert load(run).tasks


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    run = tiny.copied(tmp_path / "run")
    file = next((run / "bundle").glob("*.safetensors"))
    file.unlink()
    with pytest.raises(WorkError, match=f"{file.name}.*missing"):
        load(run)


@pytest.mark.parametrize("name", ["../plan.json", "/etc/passwd", "a/b.safetensors"])
def test_a_name_that_leaves_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    run = tiny.copied(tmp_path / "run")
    bundle = bundle_json(run)
    next(iter(bundle["tasks"].values()))["file"] = name
    sealed(run, bundle)
    with pytest.raises(WorkError, match="outside the bundle"):
        load(run)


@pytest.mark.parametrize(("key", "value", "error", "says"), [
    ("format", 99, InputError, "format 99.*pip install -U"),
    ("format", None, WorkError, "names no format"),
    ("backbone", "other", InputError, "fingerprint"),
])  # fmt: skip
def test_another_format_or_backbone_is_refused(tmp_path: Path, key: str, value: Any, error: type[Exception], says: str) -> None:
    run = tiny.copied(tmp_path / "run")
    bundle = bundle_json(run)
    bundle[key] = bundle["backbone"] | {"fingerprint": "0" * 32} if key == "backbone" else value
    sealed(run, bundle)
    with pytest.raises(error, match=says):
        load(run)


def test_what_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run or a bundle"):
        load(tmp_path)
    (tmp_path / "plan.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="--resume"):
        load(tmp_path)


def test_packed_slots_come_back_near_or_exactly() -> None:
    tree = {"0/a.b": {"w": torch.randn(5, 3), "bits": torch.arange(4, dtype=torch.uint8)}}
    half = store.unpack(store.pack(tree, "bf16"))["0/a.b"]
    assert torch.equal(half["w"], tree["0/a.b"]["w"].bfloat16().float()) and torch.equal(half["bits"], tree["0/a.b"]["bits"])
    small = store.pack(tree, "int8")
    assert store.size(small) < store.size(store.pack(tree, "bf16")) and small["0/a.b/w"].dtype is torch.int8
    step = tree["0/a.b"]["w"].abs().max() / 127
    assert (store.unpack(small)["0/a.b"]["w"] - tree["0/a.b"]["w"]).abs().max() <= step / 2 + 1e-6


def test_one_task_several_and_all_answer_alike_in_order() -> None:
    model = load(tiny.fitted("bert")[0])
    names = [n for n, t in model.tasks.items() if t["kind"] in ("classify", "multilabel", "regress")]
    alone = {n: model.predict(n, ROWS) for n in names}
    assert model.predict(names, ROWS) == [{n: alone[n][i] for n in names} for i in range(len(ROWS))]
    whole = model.predict("all", ROWS)
    assert [{n: row[n] for n in names} for row in whole] == model.predict(names, ROWS)
    assert all(row["pair"] is None and row["choice"] is None and row["tag"] is None for row in whole)
    assert [model.predict(names[0], [row])[0]["prediction"] for row in ROWS] == [a["prediction"] for a in alone[names[0]]]


def test_a_row_that_lacks_something_is_told_by_number() -> None:
    model = load(tiny.fitted("bert")[0])
    with pytest.raises(InputError, match="row 2: task pair needs 'text_b'"):
        model.predict("pair", [{"text": "a", "text_b": "b"}, {"text": "a"}])
    with pytest.raises(InputError, match="no task 'clasify'.*classify"):
        model.predict("clasify", ROWS)


def test_add_leaves_the_bits_of_the_others(tmp_path: Path) -> None:
    run = tiny.copied(tmp_path / "run")
    before, old = bundle_json(run)["tasks"], load(run).predict("all", ROWS)
    files = {n: (run / "bundle" / t["file"]).read_bytes() for n, t in before.items() if t["file"]}
    tiny.folder(tmp_path / "data" / "late", "classify", seed=5)
    with tiny.quick():
        change.add(run, {"tasks": {"late": {"data": str(tmp_path / "data" / "late")}}})
    after = bundle_json(run)["tasks"]
    assert {n: t for n, t in after.items() if n != "late"} == before
    assert {n: (run / "bundle" / after[n]["file"]).read_bytes() for n in files} == files
    new = load(run).predict("all", ROWS)
    assert [{n: a for n, a in row.items() if n != "late"} for row in new] == old and all(row["late"] for row in new)
    assert "late" in json.loads((run / "results.json").read_text(encoding="utf-8"))["tasks"]
    with pytest.raises(InputError, match="has a task 'late' already"), tiny.quick():
        change.add(run, {"tasks": {"late": {"data": str(tmp_path / "data" / "late")}}})


def test_remove_drops_one_task_and_its_files(tmp_path: Path) -> None:
    run = tiny.copied(tmp_path / "run")
    old = load(run).predict("classify", ROWS)
    change.remove(run, "tag")
    model = load(run)
    assert "tag" not in model.tasks and model.predict("classify", ROWS) == old
    assert "tag" not in json.loads((run / "results.json").read_text(encoding="utf-8"))["tasks"]
    with pytest.raises(InputError, match="no task 'tag'"):
        change.remove(run, "tag")


def forced(run: Path) -> list[str]:
    """The tasks of a run whose rung is delta, at least two of which the merge tests need."""
    return [n for n, t in bundle_json(run)["tasks"].items() if t["rung"] == "delta"]


@pytest.mark.parametrize("method", ["mean", {"task_arithmetic": {"scale": 0.5}}, "ties", {"dare": {"density": 0.5}}])
def test_merge_makes_one_slot_and_measures_it(tmp_path: Path, method: Any) -> None:
    place = tmp_path / "run"
    made = tiny.plan(
        tiny.home() / "bert", tiny.home() / "data", ("classify", "multilabel", "regress"), stages=["features", "probe", "delta"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anabranch.engine.result.choose", lambda job, rungs, seed: rungs[-1])
        tiny.fit(made, place)
    names = forced(place)
    assert len(names) == 3
    found = change.merge(place, method)
    assert set(found["tasks"]) == set(names) and found["kilobytes_saved"] > -1e9
    merged = load(place / "merged")
    assert {merged.task(n).slot for n in names} == {1}
    for n in names:
        assert found["tasks"][n]["single"] == bundle_json(place)["tasks"][n]["test"]


def test_merge_needs_two_tasks_with_slots(tmp_path: Path) -> None:
    run = tiny.copied(tmp_path / "run")
    with pytest.raises(InputError, match="no task 'nobody'"):
        change.merge(run, "ties", tasks=["nobody"])
    with pytest.raises(InputError, match="no merge 'tiess'.*ties"):
        change.merge(run, "tiess")


def test_export_is_a_checkpoint_that_loads(tmp_path: Path) -> None:
    run = tiny.copied(tmp_path / "run")
    told = change.export(run, "classify", tmp_path / "out")
    assert "model.safetensors" in told["files"] and "config.json" in told["files"]
    with pytest.raises(InputError, match="not empty"):
        change.export(run, "classify", tmp_path / "out")
