"""A bundle on disk: what is stored comes back, and whatever byte is wrong, it is seen and the file is named."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import _tiny as tiny

from anabranch.core.names import every
from anabranch.engine import cache, store
from anabranch.engine.backbone import backbone_of
from anabranch.engine.cache import digest, read_json
from anabranch.engine.model import load
from anabranch.errors import InputError, WorkError


def run(place: Path) -> Path:
    """A copy of the finished run without its caches."""
    shutil.copytree(tiny.fitted("bert")[0] / "bundle", place / "bundle")
    return place


def rewrite(place: Path, **change: Any) -> dict[str, Any]:
    """bundle.json with other content and a checksum that fits."""
    bundle = store.open_bundle(place)[1] | change
    body = {k: v for k, v in bundle.items() if k not in ("format", "sum")}
    (place / "bundle" / "bundle.json").write_text(json.dumps({"format": bundle["format"], "sum": digest(body)} | body))
    return bundle


# ---- tensors


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_packing(form):
    rng = torch.Generator().manual_seed(0)
    tree = {
        "0/a.b[0:4]": {"w": torch.randn(5, 3, generator=rng), "none": torch.zeros(2), "ids": torch.tensor([1, 300])},
        "1/c": {"s": torch.tensor(2.5)},
    }
    back = store.unpack(store.pack(tree, form))
    assert {s: set(p) for s, p in back.items()} == {s: set(p) for s, p in tree.items()}
    for site, p in tree.items():
        for name, t in p.items():
            step = t.abs().max() / 127 / 2 if form == "int8" else t.abs().max() / 256
            assert back[site][name].shape == t.shape
            assert (
                (back[site][name] - t).abs().max() <= step + 1e-7 if t.is_floating_point() else torch.equal(back[site][name], t)
            )
    again = store.unpack(store.pack(back, form))  # what was stored once is stored as it is
    assert all(torch.allclose(again[s][n], back[s][n], rtol=0, atol=1e-7) for s in back for n in back[s])
    assert store.size(store.pack({"a": {"w": torch.zeros(10)}}, "bf16")) == 20
    assert store.size(store.pack({"a": {"w": torch.zeros(10)}}, "int8")) == 14


def test_files_are_named_by_their_content(tmp_path):
    a, b = {"x": torch.ones(3)}, {"x": torch.ones(3), "y": torch.zeros(1)}
    names = [store.put(tmp_path, t) for t in (a, b, {"x": torch.ones(3)})]
    assert names[0] == names[2] != names[1] and len(list(tmp_path.iterdir())) == 2
    assert torch.equal(store.get(tmp_path, names[0])["x"], a["x"])
    shutil.copy(tmp_path / names[0], tmp_path / names[1])
    with pytest.raises(WorkError, match=f"{names[1]} is damaged: its content does not fit its name"):
        store.get(tmp_path, names[1])


def test_a_task_comes_back(tmp_path):
    slot, head = {"0/s/a": torch.ones(2, 2).bfloat16()}, {"W": torch.tensor([[1.5, -2.0]]), "b": torch.tensor([0.25])}
    post, corpus = {"temperature": torch.tensor(0.3), "thresholds": torch.tensor([0.1, 0.7])}, {"d/1": "a\nb", "ü": "\u2028"}
    after = {"down": torch.ones(2, 1).bfloat16()}
    entry = store.save_task(tmp_path, {"kind": "x"}, slot, head, post, corpus, after=after)
    found = store.parts_of(tmp_path, entry["file"])
    for got, want in zip(found, (slot, head, post, {}, after), strict=True):
        assert got.keys() == want.keys() and all(torch.equal(got[n], want[n]) for n in want)
    assert entry["kind"] == "x" and store.corpus_of(tmp_path, entry["corpus"]) == corpus
    assert store.save_task(tmp_path, {}, {}, {}, {}) == {"file": None} and store.parts_of(tmp_path, None) == ({}, {}, {}, {}, {})


@pytest.mark.parametrize("name", every("delta"))
def test_a_bank_comes_back_from_its_card(name):
    f = backbone_of(str(tiny.home() / "bert"), "float32").f
    from anabranch.core.bank import Bank
    from anabranch.core.names import make
    from anabranch.core.site import find

    kind, rng = make("delta", name), torch.Generator().manual_seed(0)
    bank = Bank.make(kind, make("gate", "by_task"), find(f, kind.at), rng)
    slot = bank.fresh(rng)
    entry = json.loads(json.dumps(store.bank_card(bank)))
    back = store.bank_of(entry, f)
    assert back.delta == bank.delta and back.sites == bank.sites and len(back) == 0
    back.add([slot])
    bank.add([slot])
    back.tables["shared"].put(1, bank.tables["shared"].get(1))  # stored in a file of its own
    assert {n: t.data.dtype for n, t in back.tables.items()} == {n: t.data.dtype for n, t in bank.tables.items()}
    assert all(torch.equal(back.tables[n].data, bank.tables[n].data) for n in bank.tables)


# ---- bundle.json


def test_saving_drops_what_is_no_longer_named(tmp_path):
    place = run(tmp_path)
    folder, bundle = store.open_bundle(place)
    for stray in ("0" * 32 + ".safetensors", ".x.safetensors.12.part", "old.jsonl", "README.md"):
        (folder / stray).write_text("x")
    store.save(folder, bundle)
    named = {t[k] for t in bundle["tasks"].values() for k in ("file", "corpus") if t.get(k)} | {
        (bundle["shared"] or {}).get("file")
    }
    assert {p.name for p in folder.iterdir()} == named - {None} | {"bundle.json", "README.md"}
    assert store.open_bundle(place)[1] == bundle == store.open_bundle(folder)[1]


def test_every_line_of_bundle_json_is_watched(tmp_path):
    """A changed label, threshold or rung would be another answer, and there is nothing else to see it by."""
    place = run(tmp_path)
    path = place / "bundle" / "bundle.json"
    whole, rng = path.read_bytes(), random.Random(0)
    for at in sorted(rng.sample(range(len(whole)), 300)):
        changed = whole[:at] + bytes([whole[at] ^ rng.choice([1, 2, 4, 16, 128])]) + whole[at + 1 :]
        if b'"format": 1' not in changed[:20]:
            continue
        path.write_bytes(changed)
        try:
            same = json.loads(changed) == json.loads(whole)  # white space
        except ValueError:
            same = False
        if same:
            store.open_bundle(place)
        else:
            with pytest.raises(WorkError, match=r"bundle\.json is damaged"):
                store.open_bundle(place)


def test_every_byte_of_a_task_file_is_watched(tmp_path):
    place = run(tmp_path)
    bundle = store.open_bundle(place)[1]
    rng = random.Random(0)
    for name in {bundle["tasks"]["tag"]["file"], bundle["tasks"]["retrieve"]["corpus"]}:
        path = place / "bundle" / name
        whole = path.read_bytes()
        for at in [0, 8, 9, len(whole) - 1, *rng.sample(range(len(whole)), 60)]:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ rng.choice([1, 8, 64])]) + whole[at + 1 :])
            with pytest.raises(WorkError, match=f"{name} is damaged"):
                load(place)
        for part in (b"", whole[:-1], whole + b"\n"):
            path.write_bytes(part)
            with pytest.raises(WorkError, match=f"{name} is damaged"):
                load(place)
        path.unlink()
        with pytest.raises(WorkError, match=f"{name} is missing"):
            load(place)
        path.write_bytes(whole)
    assert load(place)


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/hostname", "sub/x.safetensors", "..", "."])
@pytest.mark.parametrize("key", ["file", "corpus"])
def test_names_that_leave_the_folder_are_refused(tmp_path, key, name):
    place = run(tmp_path / "a" / "b")
    tensors = {"head/W": torch.ones(1)}
    cache.write_tensors(tmp_path / "a" / "secret.safetensors", tensors)
    tasks = store.open_bundle(place)[1]["tasks"]
    rewrite(place, tasks=tasks | {"retrieve": tasks["retrieve"] | {key: name}})
    with pytest.raises(WorkError, match=r"(bundle.json names a file outside the bundle|is missing)"):
        load(place)


def test_a_newer_format_asks_for_a_newer_version(tmp_path):
    place = run(tmp_path)
    (place / "bundle" / "bundle.json").write_text(json.dumps({"format": 2, "all": "other"}))
    with pytest.raises(InputError, match=r"has format 2, this version reads up to 1: pip install -U anabranch"):
        load(place)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"format": "1"}', "{", "", "\0"])
def test_what_is_no_bundle_json_is_damaged(tmp_path, text):
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(WorkError, match=r"bundle\.json is damaged"):
        store.open_bundle(tmp_path)


def test_where_there_is_no_bundle(tmp_path):
    with pytest.raises(InputError, match="is not a run or a bundle: no bundle.json in it"):
        store.open_bundle(tmp_path / "nothing")
    run(tmp_path / "tickets")
    with pytest.raises(InputError, match="did you mean tickets"):
        store.open_bundle(tmp_path / "tickeds")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="a run that is not finished: go on with anabranch fit PLAN --out .*half --resume"):
        store.open_bundle(tmp_path / "half")


def test_other_weights_under_the_same_name_are_refused(tmp_path, monkeypatch):
    place = run(tmp_path / "run")
    other = tiny.bert(tmp_path / "other", seed=1)
    bundle = store.open_bundle(place)[1]
    rewrite(place, backbone=bundle["backbone"] | {"id": str(other)})
    with pytest.raises(
        InputError, match=r"was made for backbone .* with fingerprint \w{8}, got .*other with \w{8}: .* use the same weights"
    ):
        load(place)
    rewrite(place, backbone=bundle["backbone"] | {"id": str(tmp_path / "gone")})
    with pytest.raises(InputError, match="no backbone '.*gone'"):
        load(place)


def test_the_bundle_alone_is_enough(tmp_path):
    """RUN/work may be deleted, the bundle moved."""
    out, results = tiny.fitted("bert")
    moved = Path(shutil.copytree(out / "bundle", tmp_path / "elsewhere"))
    found = load(moved).evaluate(tiny.home() / "data")
    assert {n: t["score"] for n, t in found.items()} == {n: t["test"] for n, t in results["tasks"].items()}
    assert not any(p.suffix not in (".json", ".jsonl", ".safetensors") for p in moved.iterdir())
    assert read_json(moved / "bundle.json")["made"]["plan"]["backbone"] == str(tiny.home() / "bert")
