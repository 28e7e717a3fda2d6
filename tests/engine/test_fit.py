"""From a plan to a bundle, on tiny models: the contract of results.json, sameness, being killed, budgets, odd data."""

import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import _tiny as tiny

from anabranch.engine import cache, store
from anabranch.engine.cache import read_json, read_tensors
from anabranch.engine.model import load
from anabranch.errors import InputError, WorkError

TASK = {
    "kind", "metric", "n_train", "n_valid", "n_test", "majority", "probe", "delta", "shared", "chosen", "valid", "test",
    "kilobytes", "seconds",
}  # fmt: skip
RUN = {"format", "seed", "backbone", "dtype", "seconds", "stages", "tasks"}
RUNGS = ("probe", "delta", "shared")


def small(place: Path, names: tuple[str, ...] = ("classify", "tag"), **more: Any) -> dict[str, Any]:
    """A plan of small tasks of these kinds, on the shared tiny BERT."""
    for kind in names:
        if not (place / "data" / kind).exists():
            tiny.folder(place / "data" / kind, kind, {"train": 40, "valid": 12, "test": 12})
    return tiny.plan(tiny.home() / "bert", place / "data", names, **more)


def one(place: Path, made: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A plan of one task from rows; splits are held out."""
    return {"backbone": str(tiny.home() / "bert"), "tasks": {"a": {"data": str(tiny.lines(place / "a.jsonl", made))} | more}}


# ---- what comes out


@pytest.mark.parametrize("backbone", ["bert", "gpt2"])
def test_all_kinds_end_to_end(backbone):
    out, results = tiny.fitted(backbone)
    names = tiny.HEADED if backbone == "bert" else list(tiny.KINDS)
    assert read_json(out / "results.json") == json.loads(json.dumps(results))
    assert set(results) >= RUN and list(results["tasks"]) == names and results["format"] == 1
    assert set(results["stages"]) == {"look", "features", "probe", "relate", "delta", "share", "choose"}
    assert results["dtype"] == "float32" and sum(results["stages"].values()) <= results["seconds"] + 0.01
    for name, task in results["tasks"].items():
        assert set(task) >= TASK and task["kind"] == name
        assert (task["n_train"], task["n_valid"], task["n_test"]) == (64, 24, 24)
        assert task["chosen"] in RUNGS and task["test"] == task[task["chosen"]]
        assert task["valid"] == task["rungs"][task["chosen"]]["valid"] and task["kilobytes"] > 0
        assert all(isinstance(task[r], float) and -1 <= task[r] <= 1 for r in (*RUNGS, "majority")), {
            r: task[r] for r in (*RUNGS, "majority")
        }
        if (backbone, name) != ("gpt2", "pair"):  # which a random GPT-2 does not learn in six passes
            assert max(task[r] for r in RUNGS) > task["majority"] + 0.1, (name, task)
    assert sorted(p.name for p in out.iterdir()) == ["bundle", "plan.json", "report.html", "results.json", "work"]
    matrix = torch.tensor(results["related"]["matrix"])
    assert matrix.shape == (len(names),) * 2 and matrix.abs().max() <= 1 and torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix.diag(), torch.ones(len(names)), atol=1e-4)


@pytest.mark.parametrize("backbone", ["bert", "gpt2"])
def test_a_loaded_bundle_scores_what_fit_measured(backbone):
    out, results = tiny.fitted(backbone)
    found = load(out).evaluate(tiny.home() / "data")
    expected = {n: {"metric": t["metric"], "score": t["test"], "rows": t["n_test"]} for n, t in results["tasks"].items()}
    assert found == expected


@pytest.mark.parametrize(
    "delta", ["lora", "adapter", "ia3", "offset", "mask", "dense", "prompt", "deep_prompt", [{"prompt": {"tokens": 2}}, "lora"]]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_delta_is_served_as_it_was_measured(tmp_path, monkeypatch, delta, dtype):
    if dtype == "bfloat16" and delta not in ("lora", "mask"):
        pytest.skip("two of them are enough")
    monkeypatch.setattr("anabranch.engine.result.choose", lambda job, rungs, seed: rungs[-1])  # the delta, good or not
    for name in ("classify", "tag"):
        tiny.folder(tmp_path / "data" / name, name, {"train": 20, "valid": 8, "test": 8})
    plan = tiny.plan(
        tiny.home() / "bert", tmp_path / "data", ["classify", "tag"], delta=delta, stages=["features", "probe", "delta"]
    )
    results = tiny.fit(plan, tmp_path / "run", steps=2, dtype=dtype)
    model = load(tmp_path / "run")
    assert {t["rung"] for t in model.tasks.values()} == {"delta"} and results["dtype"] == dtype
    found = model.evaluate(tmp_path / "data")
    assert {n: t["score"] for n, t in found.items()} == {n: t["test"] for n, t in results["tasks"].items()}


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    results = [tiny.fit(small(tmp_path, seed=seed), tmp_path / name) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    assert tiny.timeless(results[0]) == tiny.timeless(results[1])
    a, b, c = (tiny.files(tmp_path / name / "bundle") for name in "abc")
    assert a == b and a.keys() != c.keys()


def test_a_task_does_not_depend_on_its_companions(tmp_path, monkeypatch):
    """Numbers of the learner bit for bit, and all rungs of its own; also where a step's rows fill more than one batch."""
    small(tmp_path, ("classify", "tag", "retrieve"))
    long = [r | {"text": r["text"] + " the" * (100 - len(r["text"].split()))} for r in tiny.rows("regress", 100)]
    for i, name in enumerate(("first", "second", "regress")):
        tiny.lines(tmp_path / "data" / name / "train.jsonl", [r | {"label": i + r["label"] ** (i + 1)} for r in long])
    many = ["first", "second", "regress", "retrieve", "tag", "classify"]
    monkeypatch.setattr("anabranch.engine.train.TOKENS", 8192)  # between two and three times 32 rows of 112 tokens
    asked = {"alone": ["regress"], "two": ["classify", "regress"], "many": many}
    rungs, kept = {}, {}
    for name, tasks in asked.items():
        plan = tiny.plan(tiny.home() / "bert", tmp_path / "data", tasks, stages=["features", "probe", "delta"])
        found = tiny.fit(plan, tmp_path / name)["tasks"]
        rungs[name] = {n: tiny.timeless(t) for n, t in found.items()}
        kept[name] = {n: read_tensors(next((tmp_path / name / "work" / "train").glob(f"{cache.digest(n)}-*"))) for n in tasks}
    for task, here in (("regress", "alone"), ("classify", "two")):
        assert rungs[here][task] == rungs["many"][task]
        (mine, note), (theirs, other) = kept[here][task], kept["many"][task]
        assert note == other and mine.keys() == theirs.keys()
        assert [n for n in mine if not torch.equal(mine[n], theirs[n])] == []


def test_a_task_that_speaks_changes_nothing_for_the_others(tmp_path):
    """Speaking runs all of f; the others start at f's middle, whose features their heads may read."""
    results = {}
    for names in (["classify", "tag"], ["classify", "tag", "generate"]):
        out = tmp_path / f"{len(names)}"
        plan = tiny.plan(tiny.home() / "gpt2", tiny.home() / "data", names, stages=["features", "probe", "delta"])
        results[len(names)] = tiny.fit(plan | {"delta": {"lora": {"rank": 4}, "lr": 0.02}}, out)["tasks"]
        model = load(out)
        assert model.tail == 1
        found = model.evaluate(tiny.home() / "data")
        assert {n: t["score"] for n, t in found.items()} == {n: t["test"] for n, t in results[len(names)].items()}
    losses = [e["loss"] for e in results[3]["generate"]["curve"]]
    assert losses[-1] < losses[0]
    for name in ("classify", "tag"):
        assert tiny.timeless(results[2][name]) == tiny.timeless(results[3][name])


def test_max_length_of_a_companion_changes_nothing(tmp_path):
    plan = small(tmp_path, ("classify", "regress"), stages=["features", "probe"])
    long = [r | {"text": r["text"] + " the" * 200} for r in tiny.rows("classify", 60)]
    tiny.lines(tmp_path / "data" / "classify" / "train.jsonl", long)
    alone = tiny.fit(plan | {"tasks": {"classify": plan["tasks"]["classify"]}}, tmp_path / "alone")
    plan["tasks"]["regress"]["max_length"] = 16
    both = tiny.fit(plan, tmp_path / "both")
    assert tiny.timeless(alone["tasks"]["classify"]) == tiny.timeless(both["tasks"]["classify"])


# ---- being stopped


def child(plan: Any, out: Path, stage: str, path: str) -> None:
    """Fits in another process, which dies as by kill -9 when ``told`` says ``stage`` or when a file that ends in ``path`` has
    its content but not yet its name."""
    real = os.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def replace(old: Any, new: Any) -> None:
        if path and re.search(path + "$", str(new)):
            die()
        real(old, new)

    cache.os.replace = replace  # type: ignore[attr-defined]
    tiny.fit(plan, out, resume=True, told=lambda now, *said: die() if stage and re.fullmatch(stage, f"{now} {said[0]}") else None)


def run_child(plan: Any, out: Path, stage: str = "", path: str = "", seconds: float = 300.0) -> int | None:
    """Exit code of a fit that is killed after ``seconds``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks while there are threads; those here are idle
        process = multiprocessing.get_context("fork").Process(target=child, args=(plan, out, stage, path))
        process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A plan, and the results and bundle of a fit of it that nothing disturbed."""
    place = tmp_path_factory.mktemp("whole")
    plan = small(place, ("classify", "tag", "retrieve"))
    results = tiny.fit(plan, place / "run")
    return plan, tiny.timeless(results), tiny.files(place / "run" / "bundle")


needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="forks a process that holds torch")


@needs_fork
def test_kill_at_any_stage_then_resume(tmp_path, whole):
    plan, results, bundle = whole
    out = tmp_path / "run"
    moments = [
        ("", r"/plan.json"), ("look 1", ""), ("", r"/profile.json"), ("", r"features/\w+.npy"), ("", r"features/\w+.safetensors"),
        (r"features \d+", ""), ("probe 1", ""), ("", r"probe/\w+-\w+.safetensors"), ("delta 0", ""), ("", r"train/\w+-\w+.safetensors"),
        ("delta 2", ""), ("share 1", ""), ("", r"train/shared-\w+.safetensors"), ("share 3", ""), ("", r"bundle/\w+.safetensors"),
        ("", r"bundle/\w+.jsonl"), ("", r"bundle/bundle.json"), ("", r"results.json"),
    ]  # fmt: skip
    for moment in moments:
        assert run_child(plan, out, *moment) == -signal.SIGKILL, moment
        assert not (out / "results.json").exists()
    assert any(p.suffix == ".part" for p in out.rglob("*"))
    assert run_child(plan, out) == 0
    assert tiny.timeless(read_json(out / "results.json")) == results and tiny.files(out / "bundle") == bundle


@needs_fork
def test_a_kill_before_there_is_a_plan_leaves_nothing_behind(tmp_path, whole):
    plan, results, _ = whole
    out = tmp_path / "run"
    assert run_child(plan, out, "", r"/plan.json") == -signal.SIGKILL
    assert [p.suffix for p in out.iterdir()] == [".part"]
    assert run_child(plan, out) == 0 and tiny.timeless(read_json(out / "results.json")) == results
    assert not list(out.rglob("*.part"))


@needs_fork
def test_kill_at_random_times_then_resume(tmp_path, whole):
    plan, results, bundle = whole
    out = tmp_path / "run"
    codes = [run_child(plan, out, seconds=random.uniform(0.1, 0.8)) for _ in range(6)]
    assert -signal.SIGKILL in codes
    tiny.fit(plan, out, resume=True)
    assert tiny.timeless(read_json(out / "results.json")) == results and tiny.files(out / "bundle") == bundle


def test_an_interrupt_leaves_a_run_that_can_be_resumed(tmp_path, whole):
    plan, results, bundle = whole
    out = tmp_path / "run"
    for stage in ("look", "features", "probe", "delta", "share"):

        def told(now: str, *said: Any, stage: str = stage) -> None:
            if now == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tiny.fit(plan, out, told=told, resume=True)
        assert not (out / "bundle").exists() and not list(out.rglob("*.part"))
    tiny.fit(plan, out, resume=True)
    assert tiny.timeless(read_json(out / "results.json")) == results and tiny.files(out / "bundle") == bundle


@pytest.mark.parametrize("change", [lambda b: b[:-3], lambda b: b"", lambda b: flipped(b, -2)])
def test_damaged_caches_are_made_again(tmp_path, whole, change):
    """Each file of RUN/work, cut or with a changed byte, costs time and never the answer."""
    plan, results, bundle = whole
    out = Path(shutil.copytree(Path(plan["tasks"]["tag"]["data"]).parents[1] / "run", tmp_path / "run"))
    shutil.rmtree(out / "bundle")
    (out / "results.json").unlink()
    for path in (out / "work").rglob("*.*"):
        path.write_bytes(change(path.read_bytes()))
    tiny.fit(plan, out, resume=True)
    assert tiny.timeless(read_json(out / "results.json")) == results and tiny.files(out / "bundle") == bundle


def flipped(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_a_resumed_run_stays_with_the_machine_that_it_began_on(tmp_path):
    plan = small(tmp_path, stages=["features", "probe"])
    tiny.fit(plan, tmp_path / "run", dtype="bfloat16")
    assert tiny.fit(plan, tmp_path / "run", dtype="float32", resume=True)["dtype"] == "bfloat16"


def test_a_full_disk_stops_with_the_file_and_the_run_can_go_on(tmp_path, whole, monkeypatch):
    plan, results, bundle = whole
    for last in (1, 3, 5, 8, 12, 6):  # files that still fit, the two that are written anew each time among them
        left = [last]

        def full(part: Any, mode: str = "r", left: list[int] = left, **more: Any) -> Any:
            left[0] -= str(part).endswith(".part") and mode == "rb+"
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return open(part, mode, **more)

        monkeypatch.setattr(cache, "open", full, raising=False)
        with pytest.raises(WorkError, match=r"run/\S+ cannot be written: No space left on device"):
            tiny.fit(plan, tmp_path / "run", resume=True)
        monkeypatch.undo()
        assert not (tmp_path / "run" / "results.json").exists() and not list((tmp_path / "run").rglob("*.part"))
    tiny.fit(plan, tmp_path / "run", resume=True)
    assert tiny.timeless(read_json(tmp_path / "run" / "results.json")) == results
    assert tiny.files(tmp_path / "run" / "bundle") == bundle


def test_no_permission_is_a_work_error(tmp_path, monkeypatch):
    def denied(self: Path, *args: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(WorkError, match=r"plan.json cannot be written: Permission denied"):
        tiny.fit(small_made(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def small_made(place: Path) -> dict[str, Any]:
    return tiny.plan(tiny.home() / "bert", tiny.home() / "data", ["classify"], stages=["features", "probe"])


# ---- a used folder


def test_a_used_folder_needs_a_word(tmp_path):
    plan, out = small_made(tmp_path), tmp_path / "run"
    tiny.fit(plan, out)
    before = tiny.files(out)
    with pytest.raises(InputError, match="not empty: add --resume to go on, --overwrite to start anew, or choose another --out"):
        tiny.fit(plan, out)
    other = plan | {"seed": 1, "delta": "ia3"}
    with pytest.raises(InputError, match="made by another plan, which differs in delta, seed: use that plan, or --overwrite"):
        tiny.fit(other, out, resume=True)
    assert tiny.files(out) == before
    (out / "report.html").write_text("old")
    assert tiny.fit(other, out, overwrite=True)["seed"] == 1
    assert (out / "report.html").read_text() != "old" and read_json(out / "results.json")["seed"] == 1


def test_resume_starts_what_is_missing_or_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        assert tiny.fit(small_made(tmp_path), tmp_path / name, resume=True)["format"] == 1


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}, {}])
def test_a_folder_of_other_files_is_left_alone(tmp_path, how):
    (tmp_path / "home" / "work").mkdir(parents=True)
    (tmp_path / "home" / "work" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="choose another --out"):
        tiny.fit(small_made(tmp_path), tmp_path / "home", **how)
    assert tiny.files(tmp_path / "home") == {"work/thesis.tex": b"years"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        tiny.fit(small_made(tmp_path), tmp_path / "file", **how)
    assert (tmp_path / "file").read_text() == "x"


def test_resume_does_not_undo_what_was_added_or_removed(tmp_path):
    out, plan = tmp_path / "run", tiny.plan(tiny.home() / "bert", tiny.home() / "data")
    tiny.copied(out)
    results = read_json(out / "results.json")
    results["tasks"].pop("tag")
    cache.write_json(out / "results.json", cache.sealed(results))
    with pytest.raises(InputError, match=r"was changed since \(tasks tag\)"):
        tiny.fit(plan, out, resume=True)


def test_dry_counts_and_writes_nothing(tmp_path):
    out = tmp_path / "run"
    plan = tiny.plan(tiny.home() / "bert", tiny.home() / "data")
    found = tiny.fit(plan, out, dry=True)
    assert not out.exists() and found["rows"] == 7 * 112 and found["minutes"] >= 0 and found["megabytes"] > 0
    assert found["tasks"]["tag"].items() >= {"kind": "tag", "metric": "span_f1", "train": 64, "valid": 24, "test": 24}.items()
    assert set(found["stages"]) == {"features", "probe", "delta", "share"}
    less = tiny.fit(plan | {"stages": ["features", "probe"]}, out, dry=True)
    assert set(less["stages"]) == {"features", "probe"} and less["minutes"] <= found["minutes"]


@pytest.mark.parametrize(
    "wrong",
    [{"stages": ["features"]}, {"gate": {"arrow": {"top": 99}}}, {"backbone": "minilmm"}, {"delta": {"lora": {"rank": 99}}}],
)
def test_a_wrong_plan_leaves_no_bundle(tmp_path, wrong):
    with pytest.raises(InputError):
        tiny.fit(small_made(tmp_path) | {"stages": None} | wrong, tmp_path / "run")
    assert not (tmp_path / "run" / "bundle").exists() and not (tmp_path / "run" / "results.json").exists()


def test_generate_needs_a_causal_backbone(tmp_path):
    with pytest.raises(InputError, match="task generate: kind generate needs a causal backbone"):
        tiny.fit(tiny.plan(tiny.home() / "bert", tiny.home() / "data", ["generate"]), tmp_path / "run")


# ---- budgets


def stored(bundle: Path, name: str) -> dict[str, torch.Tensor]:
    return store.parts_of(bundle, read_json(bundle / "bundle.json")["tasks"][name]["file"])[0]


def test_a_kilobyte_budget_takes_a_smaller_rank_then_int8(tmp_path, monkeypatch):
    monkeypatch.setattr("anabranch.engine.result.choose", lambda job, rungs, seed: rungs[-1])
    plan = small(tmp_path, delta={"lora": {"rank": 4}}, stages=["features", "probe", "delta"])
    sizes, least = {}, 0.0
    for name, share in (("all", None), ("half", 0.6), ("least", 0.01)):
        limit = share and share * least
        results = tiny.fit(plan | {"budget": {"kilobytes_per_task": limit}}, tmp_path / name, steps=2)
        least = max(t["kilobytes"] for t in results["tasks"].values())
        packed = stored(tmp_path / name / "bundle", "tag")
        rank = next(t.shape[-1] for n, t in packed.items() if n.endswith("/a"))
        sizes[name] = (rank, {t.dtype for n, t in packed.items() if not n.endswith("|scale")})
        assert bool(results["notes"]) is (limit is not None)
        found = load(tmp_path / name).evaluate(tmp_path / "data")
        assert {n: t["score"] for n, t in found.items()} == {n: t["test"] for n, t in results["tasks"].items()}
    assert sizes["all"] == (4, {torch.bfloat16}) and sizes["least"] == (1, {torch.int8})
    assert sizes["half"][0] in (1, 2) and sizes["half"][1] == {torch.bfloat16}


def test_a_shared_slot_has_one_form_whatever_the_heads(tmp_path, monkeypatch):
    """The wide head of one task makes the slot that all share int8: then all are measured with that."""
    monkeypatch.setattr("anabranch.engine.result.choose", lambda job, rungs, seed: rungs[1])
    many = [{"text": f"w{i} the", "label": f"l{i}"} for i in range(30)] * 3
    for split in ("train", "valid", "test"):
        tiny.lines(tmp_path / "data" / "wide" / f"{split}.jsonl", many[: 90 if split == "train" else 30])
    for names in (("classify", "wide"), ("wide", "classify")):
        plan = small(tmp_path, ("classify",)) | {"budget": {"kilobytes_per_task": 2.4}, "stages": ["features", "probe", "share"]}
        plan["tasks"] = {n: {"data": str(tmp_path / "data" / n)} for n in names}
        results = tiny.fit(plan | {"delta": {"lora": {"rank": 1}}}, tmp_path / names[0], steps=2)
        found = load(tmp_path / names[0]).evaluate(tmp_path / "data")
        assert {n: t["score"] for n, t in found.items()} == {n: t["test"] for n, t in results["tasks"].items()}
        bundle = tmp_path / names[0] / "bundle"
        packed = store.parts_of(bundle, read_json(bundle / "bundle.json")["shared"]["file"])[0]
        assert {t.dtype for n, t in packed.items() if n.endswith("/a")} == {torch.int8}


def test_minutes_become_passes_before_training(tmp_path):
    plan = small(tmp_path, stages=["features", "probe", "delta"])
    passes = {}
    for minutes in (None, 1e-9, 100.0):
        results = tiny.fit(plan | {"budget": {"minutes": minutes}}, tmp_path / f"{minutes}", steps=40)
        passes[minutes] = len(results["tasks"]["classify"]["curve"])
    assert passes[1e-9] == 1 and passes[None] == passes[100.0] > 3


# ---- odd data


def test_rows_without_a_label_are_left_out(tmp_path):
    made = tiny.rows("classify", 60)
    for row in made[::3]:
        row["label"] = None
    results = tiny.fit(one(tmp_path, made, kind="classify"), tmp_path / "run", steps=2)
    task = results["tasks"]["a"]
    assert task["n_train"] + task["n_valid"] + task["n_test"] == 40 and task["counts"]["missing"] == 20


@pytest.mark.parametrize("kind", tiny.HEADED)
def test_one_validation_row(tmp_path, kind):
    """No standard error, so nothing costlier than the probe is chosen, or by halves (few-shot); and nothing is undefined."""
    tiny.folder(tmp_path / "data" / kind, kind, {"train": 30, "valid": 1, "test": 9})
    results = tiny.fit(tiny.plan(tiny.home() / "bert", tmp_path / "data", [kind]), tmp_path / "run", steps=2)
    task = results["tasks"][kind]
    assert task["n_valid"] == 1 and (task["chosen"] == "probe" or kind == "classify")
    assert load(tmp_path / "run").evaluate(tmp_path / "data")[kind]["score"] == task["test"]


@pytest.mark.parametrize("kind", tiny.HEADED)
def test_no_validation_rows(tmp_path, kind):
    """The probe answers, because nothing shows that more is better; training runs to its end."""
    place = tiny.folder(tmp_path / "data" / kind, kind, {"train": 60, "test": 9}, split={"valid": 0, "test": 0.2})
    results = tiny.fit(tiny.plan(tiny.home() / "bert", tmp_path / "data", [kind]), tmp_path / "run", steps=8)
    task = results["tasks"][kind]
    assert (task["n_train"], task["n_valid"], task["valid"], task["chosen"]) == (60, 0, None, "probe")
    assert len(task["curve"]) == 4 and task["test"] == load(tmp_path / "run").evaluate(place)[kind]["score"]


def test_no_test_rows(tmp_path):
    tiny.folder(tmp_path / "data" / "tag", "tag", {"train": 30, "valid": 9}, split={"test": 0})
    task = tiny.fit(tiny.plan(tiny.home() / "bert", tmp_path / "data", ["tag"]), tmp_path / "run", steps=2)["tasks"]["tag"]
    assert task["n_test"] == 0 and task["test"] is task["probe"] is task["majority"] is None and task["valid"] > 0


def test_long_and_empty_texts(tmp_path):
    texts = {"classify": "the " * 40_000, "tag": "", "pair": "", "choice": "x" * 120_000, "retrieve": ""}
    for kind, text in texts.items():
        place = tiny.folder(tmp_path / "data" / kind, kind, {"train": 30, "valid": 8, "test": 8})
        for split in ("train", "valid", "test"):
            made = [json.loads(line) for line in (place / f"{split}.jsonl").read_text().splitlines()]
            if kind == "tag":
                made[0] |= {"tokens": [], "label": []}
                made[1] |= {"tokens": ["the"] * 300, "label": ["O"] * 300}
            made[0 if kind != "tag" else 2] |= {"text": text} if kind != "tag" else {}
            made[1] |= {"text_b": ""} if kind == "pair" else {"choices": ["", "a", ""], "label": 1} if kind == "choice" else {}
            tiny.lines(place / f"{split}.jsonl", made)
    results = tiny.fit(tiny.plan(tiny.home() / "bert", tmp_path / "data", list(texts)), tmp_path / "run", steps=2)
    found = load(tmp_path / "run").evaluate(tmp_path / "data")
    assert {n: t["score"] for n, t in found.items()} == {n: t["test"] for n, t in results["tasks"].items()}
    assert results["tasks"]["classify"]["counts"]["long"] == 3 and results["tasks"]["tag"]["counts"]["empty"] == 3


def test_a_wild_learning_rate_is_no_traceback(tmp_path):
    """What diverges loses to the probe."""
    for lr in (1e3, 1e20):
        plan = small(
            tmp_path, ("classify", "regress"), delta={"lora": {"rank": 2}, "lr": lr}, stages=["features", "probe", "delta"]
        )
        results = tiny.fit(plan, tmp_path / f"{lr}", steps=4)
        for task in results["tasks"].values():
            assert task["chosen"] == "probe" and all(math.isfinite(task[r]) for r in ("probe", "delta", "test"))
        assert any("diverged" in note for note in results["notes"]) is (lr == 1e20)
    results = tiny.fit(plan | {"stages": ["features", "probe", "share"]}, tmp_path / "share", steps=4)
    assert re.match(r"the shared slot is left out: its training diverged in pass \d; lower lr", results["notes"][0])


def test_large_numbers_keep_their_digits(tmp_path):
    """Time stamps differ in their tenth digit, a float has seven."""
    made = [r | {"label": 1_700_000_000 + r["label"]} for r in tiny.rows("regress", 120)]
    small_ones = [r | {"label": r["label"]} for r in tiny.rows("regress", 120)]
    big = tiny.fit(one(tmp_path, made, kind="regress") | {"stages": ["features", "probe"]}, tmp_path / "big")
    low = tiny.fit(one(tmp_path / "s", small_ones, kind="regress") | {"stages": ["features", "probe"]}, tmp_path / "low")
    assert big["tasks"]["a"]["test"] == pytest.approx(low["tasks"]["a"]["test"], abs=1e-3)
    spread = {row["prediction"] for row in load(tmp_path / "big").predict("a", [r["text"] for r in made])}
    assert len(spread) > 30 and all(abs(v - 1_700_000_120) < 100 for v in spread)


def test_several_numbers_and_pairs_with_a_number(tmp_path):
    two = [{"text": r["text"], "label": [r["label"], -r["label"]]} for r in tiny.rows("regress", 90)]
    tiny.lines(tmp_path / "data" / "two" / "train.jsonl", two)
    near = [r | {"label": float(r["label"] == "same")} for r in tiny.rows("pair", 90)]
    tiny.lines(tmp_path / "data" / "near" / "train.jsonl", near)
    (tmp_path / "data" / "near" / "task.json").write_text('{"kind": "pair-regress", "metric": "pearson"}')
    results = tiny.fit(tiny.plan(tiny.home() / "bert", tmp_path / "data", ["two", "near"]), tmp_path / "run", steps=4)
    assert results["tasks"]["two"]["metric"] == "spearman" and results["tasks"]["near"]["metric"] == "pearson"
    assert results["tasks"]["two"]["test"] > 0.5
    model = load(tmp_path / "run")
    found = model.evaluate(tmp_path / "data")  # without a test file: the rows that fit held out
    assert {n: t["score"] for n, t in found.items()} == {n: t["test"] for n, t in results["tasks"].items()}
    [both] = model.predict("two", ["big big"])
    assert len(both["prediction"]) == 2 and both["prediction"] == both["scores"]


def test_held_out_rows_are_the_same_for_evaluate_under_any_seed(tmp_path):
    plan = one(tmp_path, tiny.rows("classify", 60)) | {"seed": 5, "stages": ["features", "probe"]}
    results = tiny.fit(plan, tmp_path / "run")
    (tmp_path / "data" / "a").mkdir(parents=True)
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "data" / "a" / "train.jsonl")
    found = load(tmp_path / "run").evaluate(tmp_path / "data")["a"]
    assert (found["score"], found["rows"]) == (results["tasks"]["a"]["test"], results["tasks"]["a"]["n_test"])


def test_stages_can_be_left_out(tmp_path):
    results = tiny.fit(small(tmp_path, stages=["features", "probe", "share"]), tmp_path / "run", steps=2)
    assert set(results["stages"]) == {"look", "features", "probe", "share", "choose"} and "related" not in results
    assert all(t["delta"] is None and t["shared"] is not None for t in results["tasks"].values())


def test_a_plan_that_cannot_be_leaves_the_folder_as_it_was(tmp_path):
    """Wrong rows and a balance that cannot be of the tasks are found before a run begins, or an old one is overwritten."""
    data, out = tiny.home() / "data", tmp_path / "run"
    broken = tiny.plan(tiny.home() / "bert", data, ["classify"]) | {"tasks": {"classify": {"data": str(tmp_path / "gone")}}}
    odd = tiny.plan(tiny.home() / "bert", data, ["classify", "pair"], balance={"krum": {"n_byzantine": 3}})
    for plan in (broken, odd):
        with pytest.raises(InputError):
            tiny.fit(plan, out)
        assert not out.exists()
    good = tiny.plan(tiny.home() / "bert", data, ["classify"], stages=["features", "probe"])
    tiny.fit(good, out)
    before = tiny.files(out)
    for plan in (broken, odd):
        with pytest.raises(InputError):
            tiny.fit(plan, out, overwrite=True)
        assert tiny.files(out) == before
    assert tiny.fit(good | {"seed": 1}, out, overwrite=True)["seed"] == 1
