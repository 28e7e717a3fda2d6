"""kill -9 of ``fit`` and ``add`` at random moments: what goes on ends as if nothing had happened."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import yaml
from engine import _tiny as tiny
from faults import _soak
from faults._runs import NAMES, STEPS, said, sums, typed

from anabranch.engine.cache import read_json
from anabranch.engine.model import load

pytestmark = _soak.needs_linux


def test_a_fit_that_is_killed_at_random_moments_ends_in_the_same_bits(tmp_path, whole):
    plan, good, seconds = whole
    rng, codes = random.Random(None if _soak.SOAK else 3), []
    results = tiny.timeless(read_json(good / "results.json"))
    for kill in range(_soak.times(3, 100)):
        out = tmp_path / f"run{kill}"
        moments = [rng.uniform(0, seconds) for _ in range(rng.choice([1, 1, 2, 3]))]
        codes += [_soak.forked(typed("fit", plan, "--out", out, "--resume"), tmp_path / "said", at) for at in moments]
        assert _soak.forked(typed("fit", plan, "--out", out, "--resume"), tmp_path / "said") == 0, (moments, said(tmp_path))
        assert tiny.timeless(read_json(out / "results.json")) == results, moments
        assert sums(out) == sums(good) and not list(out.rglob("*.part")), moments
        shutil.rmtree(out)
    assert set(codes) <= {0, -signal.SIGKILL} and codes.count(-signal.SIGKILL) > len(codes) / 2, codes


def test_an_add_that_is_killed_leaves_the_old_bundle_or_the_new_one(tmp_path, whole):
    plan, good, seconds = whole
    more = tmp_path / "more.yaml"
    tiny.folder(tmp_path / "data" / "pair", "pair", {"train": 40, "valid": 12, "test": 12})
    more.write_text(yaml.safe_dump({"tasks": {"late": {"data": str(tmp_path / "data" / "pair")}}}))
    wanted = Path(shutil.copytree(good, tmp_path / "wanted"))
    begun = time.perf_counter()
    assert _soak.forked(typed("add", wanted, more), tmp_path / "said") == 0, said(tmp_path)
    seconds, rng = time.perf_counter() - begun, random.Random(None if _soak.SOAK else 4)
    for kill in range(_soak.times(2, 40)):
        run = Path(shutil.copytree(good, tmp_path / f"run{kill}"))
        _soak.forked(typed("add", run, more), tmp_path / "said", rng.uniform(0, seconds))
        served = load(run)  # opens and checks every file
        assert set(served.tasks) in ({*NAMES}, {*NAMES, "late"})
        if "late" not in served.tasks:
            assert _soak.forked(typed("add", run, more), tmp_path / "said") == 0, said(tmp_path)
        assert sums(run) == sums(wanted)
        shutil.rmtree(run)


def test_the_results_of_two_fits_differ_in_nothing_but_times(whole, tmp_path):
    """Else the comparisons above would compare nothing."""
    plan, good, _ = whole
    other = yaml.safe_load(plan.read_text()) | {"seed": 1}
    results = tiny.fit(other, tmp_path / "run", steps=STEPS)
    assert tiny.timeless(json.loads(json.dumps(results))) != tiny.timeless(read_json(good / "results.json"))
    assert sums(tmp_path / "run") != sums(good)
