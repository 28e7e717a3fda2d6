"""A disk that is full, files that may not be written: named, one line, nothing lost, and afterwards the same bits."""

import random
import resource
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine import _tiny as tiny
from faults import _soak
from faults._runs import refused, said, sums, typed

from anabranch.engine.cache import read_json
from anabranch.engine.model import load

pytestmark = _soak.needs_linux
ROWS = [{"text": "the red cat walks", "text_b": "a red dog", "tokens": ["ann", "sits"]}]


def no_larger(size: int, work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` on a machine where no file grows beyond ``size`` bytes: writes stop in the middle, native ones too."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        work()

    return limited


def test_files_that_do_not_fit_are_named_and_the_run_goes_on(tmp_path, whole):
    plan, good, _ = whole
    out, rng = tmp_path / "run", random.Random(None if _soak.SOAK else 5)
    sizes = sorted({p.stat().st_size for p in good.rglob("*") if p.is_file() and p.name != "report.html"})
    sizes = [size for size in sizes if size > 1000]  # what is said on stderr is in a file too
    for size in sorted(rng.sample(sizes, _soak.times(4, len(sizes)))):  # each gets a little further than the one before
        code = _soak.forked(no_larger(size - 1, typed("fit", plan, "--out", out, "--resume")), tmp_path / "said")
        assert code == 1 and refused(said(tmp_path), "cannot be written: ", str(out)), said(tmp_path)
        assert not (out / "results.json").exists() and not list(out.rglob("*.part"))
    assert _soak.forked(typed("fit", plan, "--out", out, "--resume"), tmp_path / "said") == 0, said(tmp_path)
    assert tiny.timeless(read_json(out / "results.json")) == tiny.timeless(read_json(good / "results.json"))
    assert sums(out) == sums(good)


def test_a_full_disk_is_named_and_the_run_goes_on(tmp_path, whole):
    plan, good, _ = whole
    disk, need = tmp_path / "disk", sum(p.stat().st_size for p in good.rglob("*") if p.is_file())
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        out = disk / "run"
        for share in [0.1, 0.6] if not _soak.SOAK else [i / 20 for i in range(1, 19)]:
            subprocess.run(["mount", "-o", f"remount,size={int(share * need)}", disk], check=True)
            assert _soak.forked(typed("fit", plan, "--out", out, "--resume"), tmp_path / "said") == 1
            assert refused(said(tmp_path), str(out), "cannot be written: ", "No space left"), said(tmp_path)
            assert not (out / "results.json").exists() and not list(disk.rglob("*.part"))
        subprocess.run(["mount", "-o", f"remount,size={4 * need}", disk], check=True)
        assert _soak.forked(typed("fit", plan, "--out", out, "--resume"), tmp_path / "said") == 0, said(tmp_path)
        assert tiny.timeless(read_json(out / "results.json")) == tiny.timeless(read_json(good / "results.json"))
        assert sums(out) == sums(good)
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- files that may not be written


@pytest.fixture
def closed():
    """``closed(folder)`` takes the right to write in it from everybody; tidied up afterwards."""
    shut: list[Path] = []

    def close(folder: Path) -> Path:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
            shut.append(path)
        return folder

    yield close
    for path in shut:
        with suppress(FileNotFoundError):
            path.chmod(0o755)


def poor(*words: object) -> Callable[[], Any]:
    def work() -> None:
        _soak.powerless()
        typed(*words)()

    return work


def test_a_run_that_may_not_be_written_is_read_and_refuses_the_rest_in_words(tmp_path, whole, closed):
    plan, good, _ = whole
    run = closed(Path(shutil.copytree(good, tmp_path / "run")))
    more = tmp_path / "more.yaml"
    tiny.folder(tmp_path / "pair", "pair", {"train": 40, "valid": 12, "test": 12})
    more.write_text(yaml.safe_dump({"tasks": {"late": {"data": str(tmp_path / "pair")}}}))
    before, wanted = tiny.files(run), load(good).predict("all", ROWS)
    for words in (
        ("fit", plan, "--out", run, "--resume"), ("fit", plan, "--out", run, "--overwrite"), ("add", run, more), ("remove", run, "tag"),
        ("report", run), ("merge", run, "--merge", "mean"), ("fit", plan, "--out", run / "new"),
    ):  # fmt: skip
        code = _soak.forked(poor(*words), tmp_path / "said")
        assert code == (2 if words[0] == "merge" else 1), (words, said(tmp_path))
        assert refused(said(tmp_path), *([] if words[0] == "merge" else ["Permission denied", str(run)])), said(tmp_path)
        assert tiny.files(run) == before, words

    def look() -> None:
        _soak.powerless()
        assert load(run).predict("all", ROWS) == wanted

    assert _soak.forked(look, tmp_path / "said") == 0, said(tmp_path)


def test_half_a_run_that_may_not_be_written_waits(tmp_path, whole, closed):
    plan, good, _ = whole
    run = Path(shutil.copytree(good, tmp_path / "run"))
    for gone in ("results.json", "report.html"):
        (run / gone).unlink()
    shutil.rmtree(run / "bundle")
    shutil.rmtree(run / "work" / "train")
    closed(run)
    before = tiny.files(run)
    assert _soak.forked(poor("fit", plan, "--out", run, "--resume"), tmp_path / "said") == 1
    assert refused(said(tmp_path), "cannot be written: Permission denied") and tiny.files(run) == before
    for path in [run, *run.rglob("*")]:
        path.chmod(0o755)
    assert _soak.forked(poor("fit", plan, "--out", run, "--resume"), tmp_path / "said") == 0, said(tmp_path)
    assert sums(run) == sums(good)
