"""Files appear whole or not at all; damage is seen, whichever byte it is."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from anabranch.engine.cache import (
    cache_dir,
    checksum,
    clear,
    digest,
    read_json,
    read_tensors,
    recall,
    write,
    write_json,
    write_tensors,
)
from anabranch.errors import WorkError

TENSORS = {
    "b": torch.arange(6, dtype=torch.bfloat16).view(2, 3), "a": torch.tensor([1.5]), "c": torch.zeros(0, 4),
    "ids": torch.tensor([1, 2]), "on": torch.tensor([True, False]), "small": torch.tensor([-3], dtype=torch.int8),
}  # fmt: skip


def test_tensors_come_back_bit_for_bit_with_their_note(tmp_path):
    path = write_tensors(tmp_path / "deep" / "x.safetensors", TENSORS | {"cut": torch.arange(9).view(3, 3).T}, {"n": [1, 0.1]})
    found, note = read_tensors(path)
    assert note == {"n": [1, 0.1]} and set(found) == {*TENSORS, "cut"}
    for name, t in TENSORS.items():
        assert found[name].dtype == t.dtype and torch.equal(found[name], t)
    assert torch.equal(found["cut"], torch.arange(9).view(3, 3).T)
    assert read_tensors(write_tensors(tmp_path / "none.safetensors", {})) == ({}, {})


def test_the_same_content_is_the_same_bytes(tmp_path):
    made = {write_tensors(tmp_path / f"{i}", TENSORS, {"x": 1, "y": 2}).read_bytes() for i in range(20)}
    again = write_tensors(tmp_path / "again", dict(reversed(TENSORS.items())), {"y": 2, "x": 1})
    assert len(made) == 1 and read_tensors(again)[0].keys() == TENSORS.keys()


@pytest.mark.parametrize("change", [lambda b: b ^ 1, lambda b: b ^ 0x80, lambda b: 0x20])
def test_every_damaged_byte_is_seen(tmp_path, change):
    path = write_tensors(tmp_path / "x.safetensors", {"w": torch.tensor([1.0, 2.0]), "v": torch.ones(3).bfloat16()}, {"step": 7})
    whole = path.read_bytes()
    for at, byte in enumerate(whole):
        if change(byte) != byte:
            path.write_bytes(whole[:at] + bytes([change(byte)]) + whole[at + 1 :])
            with pytest.raises(WorkError, match=r"x\.safetensors is damaged"):
                read_tensors(path)


def test_a_cut_empty_or_foreign_file_is_damaged(tmp_path):
    from safetensors.torch import save_file

    path = write_tensors(tmp_path / "x.safetensors", TENSORS)
    whole = path.read_bytes()
    for part in (b"", whole[:5], whole[:-1], whole + b"x", b"{}", os.urandom(100)):
        path.write_bytes(part)
        with pytest.raises(WorkError, match="damaged"):
            read_tensors(path)
    for meta in (None, {"about": "[]"}, {"about": "{}"}, {"about": '{"sum": 1}'}):
        save_file({"w": torch.ones(2)}, path, metadata=meta)
        with pytest.raises(WorkError, match="damaged"):
            read_tensors(path)


def test_recall_drops_what_is_damaged(tmp_path):
    path = tmp_path / "x.safetensors"
    assert recall(path) is None
    write_tensors(path, TENSORS, {"a": 1})
    kept = recall(path)
    assert kept is not None and kept[1] == {"a": 1}
    path.write_bytes(path.read_bytes()[:-3])
    assert recall(path) is None and not path.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("odd")])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, error):
    path = write_json(tmp_path / "x.json", {"old": 1})

    def half(part: Path) -> None:
        part.write_text("half")
        raise error

    with pytest.raises(WorkError if isinstance(error, OSError) else type(error)) as told:
        write(path, half)
    assert read_json(path) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert not isinstance(error, OSError) or str(told.value) == f"{path} cannot be written: No space left on device"


@pytest.mark.parametrize(
    "make", [lambda p: write_json(p, {"x": "y" * 2_000_000}), lambda p: write_tensors(p, {"x": torch.ones(500_000)})]
)
def test_a_full_disk_is_a_work_error_that_names_the_file(tmp_path, make):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        write_json(disk / "x", {"old": 1})
        with pytest.raises(WorkError, match=r"disk/x cannot be written: .*No space left"):
            make(disk / "x")
        assert read_json(disk / "x") == {"old": 1} and os.listdir(disk) == ["x"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_place_that_cannot_be_written_is_a_work_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="file/x.json cannot be written"):
        write_json(tmp_path / "file" / "x.json", {})


def test_json_that_is_damaged_is_named(tmp_path):
    for text in (b"{", b"\xff", b""):
        (tmp_path / "x.json").write_bytes(text)
        with pytest.raises(WorkError, match=r"x\.json is damaged"):
            read_json(tmp_path / "x.json")
    with pytest.raises(ValueError):
        write_json(tmp_path / "y.json", {"x": float("nan")})
    assert not (tmp_path / "y.json").exists()
    assert json.loads(write_json(tmp_path / "z.json", {"é": 0.1}).read_text(encoding="utf-8")) == {"é": 0.1}


def test_checksums_see_names_types_shapes_and_bits():
    a = torch.tensor([0.0, 1.0])
    others = [{"b": a}, {"a": a.view(1, 2)}, {"a": a.double()}, {"a": -a}, {"a": a, "b": a[:0]}, {"a": a.view(torch.int32)}, {}]
    sums = {checksum(t) for t in [{"a": a}, *others]}
    assert len(sums) == len(others) + 1
    assert checksum({"x": a, "y": a}) == checksum({"y": a.clone(), "x": torch.stack([a, a]).T[:, 0]})


def test_digests_do_not_run_together():
    assert digest("ab", "c") != digest("a", "bc") and digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})
    assert digest(b"a") != digest("a") and len(digest()) == 16 and digest(1) != digest("1")


def test_the_users_cache_can_be_cleared(tmp_path, monkeypatch):
    monkeypatch.setenv("ANABRANCH_CACHE", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "c" and clear() == 0
    write_json(tmp_path / "c" / "a" / "x.json", {})
    assert clear() == 3 and not (tmp_path / "c").exists()
    monkeypatch.delenv("ANABRANCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_dir() == tmp_path / "x" / "anabranch"
