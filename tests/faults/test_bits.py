"""Numerics by the rule of bits: who else is asked, in which order, by how many threads, and beside how many tasks changes nothing."""

import json
import logging
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import _tiny as tiny
from faults import _soak
from serve import _made as made

from anabranch import cli
from anabranch.engine import change, store
from anabranch.engine.model import Model, load
from anabranch.errors import WorkError

KINDS = ("classify", "multilabel", "regress", "tag", "pair", "choice", "retrieve")
TASKS = {f"{kind}{i}": kind + rung for i, rung in enumerate(("", "", " shared")) for kind in KINDS}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return made.bundle(tmp_path_factory.mktemp("bits") / "run", TASKS)


@pytest.fixture(scope="module")
def model(run) -> Model:
    return load(run)


def rows_of(model: Model, n: int = 12) -> dict[str, list[dict[str, Any]]]:
    return {name: tiny.rows(record["kind"], n, seed=len(name)) for name, record in model.tasks.items()}


# ---- the rule


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_row_at_a_time_sixty_four_at_once_and_any_order_give_the_same_answers(tmp_path, dtype):
    """Up to rounding: a row is padded to its own length and shares a pass with that length only."""
    model = load(made.bundle(tmp_path / "run", {kind: kind for kind in KINDS}, dtype=dtype))
    rng, step = random.Random(1), 1 if _soak.SOAK else 4
    for name in KINDS:
        rows = tiny.rows(name, 64, seed=2)
        whole, order = model.predict(name, rows), rng.sample(range(64), 64)
        assert near(name, [model.predict(name, [row])[0] for row in rows[::step]], whole[::step], dtype), name
        shuffled = dict(zip(order, model.predict(name, [rows[i] for i in order]), strict=True))
        assert near(name, [shuffled[i] for i in range(64)], whole, dtype), name
        assert model.predict(name, rows) == whole  # the same question once more: the same bits


def near(kind: str, found: Any, wanted: Any, dtype: str = "float32") -> bool:
    """The same but for rounding: where a machine's matrix products depend on the number of rows, sums are taken otherwise."""
    a, b, room = made.numbers(found), made.numbers(wanted), 1e-5 if dtype == "float32" else 2e-2
    room *= 10 if kind.startswith("regress") else 1  # in units of the target's spread
    return made.words(found) == made.words(wanted) and all(abs(x - y) <= room for x, y in zip(a, b, strict=True))


def test_one_task_or_many_loaded_are_the_same_bits(tmp_path, model, run):
    """A bundle with this task alone, and one with as many as a server may hold."""
    rows, many = (
        made.ROWS["classify"],
        {f"x{i}": ("classify", "tag probe", "pair", "regress")[i % 4] for i in range(_soak.times(60, 500))},
    )
    other = made.bundle(tmp_path / "many", many, seed=5)
    folder, bundle = store.open_bundle(run)
    there, whole = store.open_bundle(other)
    for name in ("classify0", "pair1", "tag0"):
        record = bundle["tasks"][name]
        store.copy(folder / record["file"], there / record["file"])
        whole["tasks"] = dict(random.Random(name).sample([*whole["tasks"].items(), (name, record)], len(whole["tasks"]) + 1))
    store.save(there, whole)
    crowd = load(other)
    assert len(crowd.tasks) == len(many) + 3
    for name in ("classify0", "pair1", "tag0"):
        lone = Path(shutil.copytree(run, tmp_path / name))
        for gone in [n for n in TASKS if n != name]:
            change.remove(lone, gone)
        rows = made.ROWS[TASKS[name].split()[0]]
        wanted = model.predict(name, rows)
        assert load(lone).predict(name, rows) == wanted == crowd.predict(name, rows)


def test_many_tasks_at_once_answer_as_each_alone(model):
    rows = [row for kind in KINDS for row in made.ROWS[kind][:4]]
    random.Random(3).shuffle(rows)
    together = model.predict("all", rows)
    for name in TASKS:
        able = [i for i, a in enumerate(together) if a[name] is not None]
        assert able and near(name, [together[i][name] for i in able], model.predict(name, [rows[i] for i in able])), name


# ---- threads


def test_sixteen_threads_get_the_bits_of_one(run):
    """Different tasks, one model; a second model of the same bundle is asked meanwhile."""
    model, second = load(run), load(run)
    names, rows, rng = list(TASKS)[:16], rows_of(model), random.Random(0)
    some = {
        name: [[rows[name][k] for k in sorted(rng.sample(range(12), rng.randint(1, 12)))] for _ in range(4)] for name in names
    }
    wanted = {name: [model.predict(name, part) for part in some[name]] for name in names}
    model = load(run)  # whose indices of retrieval are not made yet
    wrong: list[Any] = []
    start = threading.Barrier(16)

    def ask(i: int, name: str) -> None:
        start.wait()
        for turn in range(_soak.times(6, 400)):
            asked = (i + turn) % 4
            try:
                found = (second if i == 15 else model).predict(name, some[name][asked])
            except Exception as error:  # a thread's end would be unseen
                found = repr(error)
            if found != wanted[name][asked]:
                wrong.append((name, asked, found))

    threads = [threading.Thread(target=ask, args=(i, name)) for i, name in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads) and not wrong, wrong[:3]


# ---- what is not a number


def poisoned(run: Path, task: str, where: str = "slot", value: float = float("nan")) -> Path:
    """A task's slot or head with one number that is none, under checksums that fit."""
    folder, bundle = store.open_bundle(run)
    parts = store.parts_of(folder, bundle["tasks"][task]["file"])
    tensors = parts.slot if where == "slot" else parts.head
    name = sorted(tensors)[-1]
    sick = tensors[name].clone()
    sick.view(-1)[0] = value
    slot, head = (parts.slot | {name: sick}, parts.head) if where == "slot" else (parts.slot, parts.head | {name: sick})
    corpus = bundle["tasks"][task].get("corpus")
    texts = store.corpus_of(folder, corpus) if corpus else None
    bundle["tasks"][task] = store.save_task(folder, bundle["tasks"][task], slot, head, parts.post, texts)
    store.save(folder, bundle)
    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("task", "where"), [("classify0", "slot"), ("tag1", "head"), ("retrieve0", "slot")])
def test_a_number_that_is_none_is_told_by_its_task_and_stays_there(run, model, tmp_path, caplog, task, where, value):
    sick = poisoned(Path(shutil.copytree(run, tmp_path / "run")), task, where, value)
    with caplog.at_level(logging.WARNING, "anabranch"):
        found = load(sick)
    assert [r.getMessage() for r in caplog.records] == [
        f"task {task}: its stored delta or head holds NaN or infinity, so it does not answer"
    ]
    rows = rows_of(model, 3)
    for asked in (task, [task, "pair0"]):
        with pytest.raises(WorkError, match=f"task {task}: its stored delta or head holds NaN or infinity"):
            found.predict(asked, rows[task])
    with pytest.raises(WorkError, match=f"task {task}: "):
        found.evaluate(tiny.folder(tmp_path / "data" / task, TASKS[task].split()[0]).parent)
    mixed = [row for name in ("classify0", "tag1", "pair0", "retrieve0") for row in rows[name]]
    want = [{n: a if n != task else None for n, a in answer.items()} for answer in model.predict("all", mixed)]
    assert found.predict("all", mixed) == want and json.dumps(want, allow_nan=False)
    change.remove(sick, task)
    assert task not in load(sick).tasks and load(sick).predict("pair0", rows["pair0"]) == model.predict("pair0", rows["pair0"])


def test_a_shared_slot_of_no_numbers_silences_those_who_share_it(run, model, tmp_path, caplog):
    sick = Path(shutil.copytree(run, tmp_path / "run"))
    folder, bundle = store.open_bundle(sick)
    whole = store.get(folder, bundle["shared"]["file"])
    name = sorted(whole)[0]
    bundle["shared"]["file"] = store.put(folder, whole | {name: torch.full_like(whole[name], float("nan"))})
    store.save(folder, bundle)
    found = load(sick)
    assert {n for n, s in found.served.items() if not s.sound} == {n for n, kind in TASKS.items() if "shared" in kind}
    assert len(caplog.records) == len(KINDS) and found.predict("pair0", made.ROWS["pair"]) == model.predict(
        "pair0", made.ROWS["pair"]
    )


def test_rows_of_a_task_without_numbers_do_no_harm_in_a_pass_of_many(run, model):
    """Below the check at loading: its rows run in one pass with others', and reach nobody."""
    other = load(run)
    rows = {
        name: [r for r in made.ROWS[TASKS[name].split()[0]] if isinstance(r.get("text"), str)][:4]
        for name in ("classify0", "regress1", "multilabel0")
    }
    wanted = [(other.task(n), t) for n in rows for t in other.backbone.tokens([r["text"] for r in rows[n]])]
    clean = other.encoded(wanted, False)
    with torch.no_grad():
        other.banks[0].tables["own"].data[other.task("regress1").slot] = float("nan")
    mixed = other.encoded(wanted, False)
    sick = [s.name == "regress1" for s, _ in wanted]
    assert [not bool(z.isfinite().all()) for z in mixed] == sick
    assert all(torch.equal(a, b) for a, b, bad in zip(clean, mixed, sick, strict=True) if not bad)


def test_the_command_line_tells_it_in_one_line(run, tmp_path, capsys, monkeypatch):
    import io
    import sys

    sick = poisoned(Path(shutil.copytree(run, tmp_path / "run")), "classify0")
    for task, code in (("classify0", 1), ("all", 0)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "the red cat"}\n')))
        with pytest.raises(SystemExit) as end:
            cli.main(["predict", str(sick), "--task", task])
        out, err = capsys.readouterr()
        assert (end.value.code or 0) == code and "Traceback" not in err
        assert (
            "error: task classify0: its stored delta or head holds NaN" in err if code else json.loads(out)["classify0"] is None
        )
