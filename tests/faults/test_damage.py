"""A flipped bit, a cut or an emptied file anywhere in a run: named and refused, or made again; never another answer."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine import _tiny as tiny
from faults import _soak
from faults._runs import STEPS

from anabranch.engine import profile, store
from anabranch.engine.cache import read_json, sealed, write_json
from anabranch.engine.model import load
from anabranch.errors import InputError, WorkError
from anabranch.report import table

ROWS = [{"text": "the red cat walks", "tokens": ["ann", "sits"]}, {"text": "a w3 and w10 near", "tokens": ["the", "owl"]}]
PARTS = [  # of the run's folder
    "plan.json", "results.json", "bundle/bundle.json", "bundle/*.safetensors", "bundle/*.jsonl", "work/profile.json", "work/features/*.npy",
    "work/features/*.safetensors", "work/probe/*", "work/train/*",
]  # fmt: skip


def flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


HOW: list[Callable[[bytes, random.Random], bytes]] = [
    flipped, flipped, flipped, lambda data, rng: data[: rng.randrange(len(data))], lambda data, rng: b"",
    lambda data, rng: data + bytes(rng.randrange(1, 9)),
]  # fmt: skip


def same(damaged: bytes, good: bytes) -> bool:
    """White space may change what a JSON file says to nobody."""
    try:
        return json.loads(damaged) == json.loads(good)
    except ValueError:
        return False


@pytest.mark.parametrize("part", PARTS)
def test_damage_is_named_or_made_good_and_never_an_answer(tmp_path, whole, part):
    plan, good, _ = whole
    wanted, told, bundle = load(good).predict("all", ROWS), read_json(good / "results.json"), tiny.files(good / "bundle")
    rng = random.Random(None if _soak.SOAK else part)
    for nth in range(_soak.times(1, 100)):
        run = Path(shutil.copytree(good, tmp_path / f"run{nth}"))
        path = rng.choice(sorted(run.glob(part)))
        before, how = path.read_bytes(), rng.choice(HOW)
        path.write_bytes(how(before, rng))
        unhurt = path.suffix == ".json" and same(path.read_bytes(), before)
        names, cache = re.escape(path.name), "work" in path.relative_to(run).parts

        try:
            assert load(run).predict("all", ROWS) == wanted
        except WorkError as error:
            assert path.parent.name == "bundle" and not unhurt and path.name in str(error) and "damaged" in str(error)
        else:
            assert path.parent.name != "bundle" or unhurt
        try:
            found = table.read(run)
            assert {k: v for k, v in told.items() if k != "sum"} == found or unhurt
        except WorkError as error:
            assert path.name == "results.json" and "results.json is damaged" in str(error)

        try:
            results = tiny.fit(plan, run, steps=STEPS, resume=True)
        except (InputError, WorkError) as error:
            assert not cache and (
                re.search(f"{names} is damaged", str(error)) or "another plan, which differs in" in str(error)
            ), error
            assert path.name in ("plan.json", "results.json"), path
        else:  # made again
            assert tiny.timeless(json.loads(json.dumps(results))) == tiny.timeless(told), path
            assert tiny.files(run / "bundle") == bundle, path
            assert load(run).predict("all", ROWS) == wanted
        shutil.rmtree(run)


def test_a_bit_in_results_is_seen_wherever_it_is(tmp_path, whole):
    _, good, _ = whole
    data, rng = (good / "results.json").read_bytes(), random.Random(0)
    path, told = tmp_path / "results.json", table.read(good)
    for at in sorted(rng.sample(range(len(data)), min(len(data), _soak.times(200, 10_000)))):
        for bit in range(8) if _soak.SOAK else [rng.randrange(8)]:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            try:
                assert {n: v for n, v in table.read(tmp_path).items() if n in told} == told, at  # the checksum's own name aside
            except WorkError as error:
                assert "results.json is damaged" in str(error)


def test_results_that_a_bundle_outgrew_are_sealed_anew(tmp_path, whole):
    from anabranch.engine import change

    run = Path(shutil.copytree(whole[1], tmp_path / "run"))
    change.remove(run, "tag")
    assert set(table.read(run)["tasks"]) == {"classify", "retrieve"}
    results = read_json(run / "results.json")
    results["tasks"]["classify"]["test"] = 0.999
    write_json(run / "results.json", results)
    for use in (lambda: table.read(run), lambda: change.remove(run, "classify")):
        with pytest.raises(WorkError, match="results.json is damaged: its checksum does not fit its content"):
            use()


def test_a_checksum_is_that_of_what_a_reader_finds():
    value: dict[Any, Any] = {"b": 1, "a": (1, 2.5), 3: None, 11: "ü", 2: {10: 0, 9: 1}}
    once = sealed(value)
    again = json.loads(json.dumps(once))
    assert again.pop("sum") == once["sum"] == store.digest(again) and sealed(once)["sum"] == once["sum"] != sealed({})["sum"]


def test_a_measurement_of_the_machine_that_is_damaged_is_made_again(tmp_path, monkeypatch):
    """bfloat16 with a bit flipped is no type, and ten times the speed would be another plan of passes."""
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path))
    monkeypatch.setattr(profile, "_gigaflops", lambda dtype, n=0: 64.0)
    wanted = profile.profile()
    path, rng = next(tmp_path.glob("profile-*.json")), random.Random(0)
    data = path.read_bytes()
    for _ in range(_soak.times(60, 5000)):
        path.write_bytes(flipped(data, rng))
        found = profile.profile()
        assert {n: found[n] for n in ("dtype", "gigaflops", "threads")} == {
            n: wanted[n] for n in ("dtype", "gigaflops", "threads")
        }


def test_files_of_a_bundle_that_changed_places_are_seen(tmp_path, whole):
    """Each is whole, and each is another."""
    run = Path(shutil.copytree(whole[1], tmp_path / "run"))
    files = sorted((run / "bundle").glob("*.safetensors"))
    contents = [p.read_bytes() for p in files]
    for path, data in zip(files, contents[1:] + contents[:1], strict=True):
        path.write_bytes(data)
    with pytest.raises(WorkError, match="its content does not fit its name"):
        load(run)
