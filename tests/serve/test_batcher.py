"""Many requests, one forward pass: the answers of ``predict``, whoever else is in the batch, and nobody waits for ever."""

import random
import threading
import time
from concurrent.futures import CancelledError, wait
from typing import Any

import pytest
import torch
from engine import _tiny as tiny
from serve import _made as made

from anabranch.engine.backbone import twin
from anabranch.engine.model import Model, load
from anabranch.errors import InputError, WorkError
from anabranch.serve import batcher as batching
from anabranch.serve.batcher import Batcher, Unknown
from anabranch.serve.limits import Busy, Limits
from anabranch.serve.metrics import Metrics


@pytest.fixture(autouse=True)
def _sixteens(monkeypatch):
    """Rows here are padded to multiples of 16, so that a bucket holds several of these texts."""
    monkeypatch.setattr("anabranch.engine.backbone.STEP", 16)


TASKS = {kind: kind for kind in tiny.HEADED} | {"probe": "classify probe", "a": "regress shared", "b": "pair shared"}


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> Model:
    return load(made.bundle(tmp_path_factory.mktemp("batcher") / "run", TASKS))


def fresh(model: Model, **limits: Any) -> Batcher:
    """A batcher, not yet started, with a model of its own."""
    own = Model(model.folder, model.bundle, twin(model.backbone))
    return Batcher(own, Limits(**limits), Metrics())


@pytest.fixture
def make(offline):
    begun = []

    def batcher(**limits: Any) -> Batcher:
        begun.append(fresh(offline, **limits))
        return begun[-1]

    yield batcher
    for one in begun:
        one.stop()


def passes(batcher: Batcher) -> float:
    return batcher.metrics.registry.get_sample_value("anabranch_batch_rows_count")


def rows_of(task: str, offline: Model) -> list[dict[str, Any]]:
    return made.ROWS[offline.tasks[task]["kind"]]


# ---- answers


def test_a_request_is_answered_as_predict_answers_it_bit_for_bit(make, offline):
    batcher = make()
    batcher.start()
    for task in TASKS:
        assert batcher.submit(task, rows_of(task, offline)).result(30) == offline.predict(task, rows_of(task, offline)), task
    mixed = [row for kind in tiny.HEADED for row in made.ROWS[kind][:2]]
    for task in ("all", ["classify", "tag", "b"]):
        assert batcher.submit(task, mixed).result(30) == offline.predict(task, mixed)


def test_requests_of_many_tasks_share_forward_passes(make, offline):
    batcher = make()
    ones = [(task, [row]) for task in TASKS for row in rows_of(task, offline)]
    random.Random(0).shuffle(ones)
    futures = [batcher.submit(*one) for one in ones]  # before it starts, so that all of them wait
    batcher.start()
    for (task, rows), future in zip(ones, futures, strict=True):
        assert made.close(future.result(30), offline.predict(task, rows)), task
    lengths = passes(batcher)
    assert lengths <= 4 < len(ones)  # texts and words, of at most two padded lengths each
    assert batcher.waiting == 0
    assert batcher.metrics.registry.get_sample_value("anabranch_rows_total", {"task": "tag"}) == 12


def test_many_threads_get_their_own_answers(make, offline):
    batcher = make()
    batcher.start()
    wrong = []

    def client(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(12):
            task = rng.choice(list(TASKS))
            rows = rng.sample(rows_of(task, offline), rng.randint(1, 5))
            found = batcher.submit(task, rows).result(30)
            if not made.close(found, [wanted[task][str(row)] for row in rows]):
                wrong.append((task, rows))

    wanted = {
        t: {str(r): a for r, a in zip(rows_of(t, offline), offline.predict(t, rows_of(t, offline)), strict=True)} for t in TASKS
    }
    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_causal_backbone_speaks(make, tmp_path):
    run = made.bundle(tmp_path / "run", {"say": "generate", "colour": "classify"}, "gpt2")
    offline = load(run)
    batcher = fresh(offline)
    futures = [batcher.submit(task, made.ROWS["generate"][:5]) for task in ("say", "colour", "all")]
    batcher.start()
    assert [f.result(60) for f in futures] == [offline.predict(t, made.ROWS["generate"][:5]) for t in ("say", "colour", "all")]
    batcher.stop()


def test_truncated_answers_say_so(make, offline):
    batcher = make()
    batcher.start()
    found = batcher.submit("classify", [{"text": "red"}, {"text": made.LONG}]).result(30)
    assert [a.get("truncated", False) for a in found] == [False, True]
    rows = [{"text": "red", "choices": ["red", made.LONG]}, {"tokens": ["ann"] * 300}, {"text": made.LONG, "text_b": "x"}, {}]
    flags = [{n for n, a in row.items() if a and a.get("truncated")} for row in batcher.submit("all", rows).result(30)]
    plain = {"classify", "multilabel", "regress", "retrieve", "probe", "a"}
    assert flags == [{"choice"}, {"tag"}, plain | {"pair", "b"}, set()]
    without = [
        {n: a and {k: v for k, v in a.items() if k != "truncated"} for n, a in r.items()}
        for r in batcher.submit("all", rows).result(30)
    ]
    assert without == offline.predict("all", rows)


def test_nothing_is_answered_with_nothing(make):
    batcher = make()
    batcher.start()
    assert batcher.submit("classify", []).result(5) == []
    assert batcher.submit("tag", [{"tokens": [""]}]).result(5)[0]["prediction"] != []
    assert batcher.submit(["tag", "pair"], [{"text": "x"}]).result(5) == [{"tag": None, "pair": None}]


# ---- when a group runs


def test_a_lone_row_waits_for_others_and_no_longer(make):
    batcher = make(wait=0.3)
    batcher.start()
    start = time.perf_counter()
    first = batcher.submit("classify", [{"text": "red"}])
    time.sleep(0.1)
    second = batcher.submit("pair", [{"text": "red", "text_b": "blue"}])
    wait([first, second])
    assert 0.29 < time.perf_counter() - start < 20 and passes(batcher) == 1


def test_a_full_group_does_not_wait(make, monkeypatch):
    monkeypatch.setattr(batching, "TOKENS", 64 // torch.get_num_threads())
    batcher = make(wait=1000)
    batcher.start()
    assert len(batcher.submit("classify", [{"text": "red"}] * 8).result(30)) == 8 and passes(batcher) == 2
    lone = batcher.submit("classify", [{"text": "red"}])
    with pytest.raises(TimeoutError):
        lone.result(0.2)
    batcher.stop()  # which waits for nothing either
    assert lone.done()


# ---- refusals


def test_what_is_refused_at_once(make):
    batcher = make(queue=20)
    with pytest.raises(Unknown, match="no task 'clasify' is served here; did you mean classify"):
        batcher.submit("clasify", [])
    with pytest.raises(Unknown, match="'nope'"):
        batcher.submit(["tag", "nope"], [])
    with pytest.raises(InputError, match="may ask for 20 answers .*got 100"):
        batcher.submit("all", [{"text": "x"}] * 10)
    batcher.submit("classify", [{"text": "x"}] * 15)
    with pytest.raises(Busy) as full:
        batcher.submit("choice", [{"text": "x", "choices": ["a"] * 6}])
    assert full.value.seconds >= 1
    assert batcher.submit("choice", [{"text": "x", "choices": ["a"] * 5}])


def test_a_row_that_a_task_cannot_read_is_said_and_gives_its_place_back(make):
    batcher = make()
    batcher.start()
    future = batcher.submit("pair", [{"text": "a", "text_b": "b"}, {"text": "a"}])
    with pytest.raises(InputError, match="row 2: task pair needs 'text_b'"):
        future.result(5)
    assert batcher.waiting == 0


def test_a_request_that_breaks_a_pass_breaks_alone(make, offline, monkeypatch):
    batcher = make()
    whole = batcher.model.encoded

    def encoded(wanted, words):
        if any(served.name == "regress" for served, _ in wanted):
            raise RuntimeError("out of memory")
        return whole(wanted, words)

    monkeypatch.setattr(batcher.model, "encoded", encoded)
    futures = {task: batcher.submit(task, rows_of(task, offline)) for task in ("classify", "regress", "pair")}
    batcher.start()
    with pytest.raises(WorkError, match="the forward pass failed: RuntimeError"):
        futures["regress"].result(30)
    assert made.close(futures["pair"].result(30), offline.predict("pair", made.ROWS["pair"]))
    assert futures["classify"].result(30) and batcher.waiting == 0


def test_a_text_that_breaks_the_tokenizer_breaks_alone(make):
    batcher = make()
    futures = [batcher.submit("classify", [{"text": text}]) for text in ("red", "\ud800", "blue")]
    batcher.start()
    assert futures[0].result(30) and futures[2].result(30)
    with pytest.raises(Exception):  # noqa: B017 - whatever the tokenizer makes of half a character
        futures[1].result(30)


@pytest.mark.parametrize(("held", "first"), [(100.0, "many"), (0.0, "one")])
def test_the_largest_group_goes_first_unless_another_has_been_held_too_long(make, monkeypatch, held, first):
    monkeypatch.setattr(batching, "HELD", held)
    batcher, ended, futures = make(), [], []
    texts = {"one": [{"text": "red " * 30}], "many": [{"text": "red"}] * 3}  # of two padded lengths; the single one came first
    for name, rows in texts.items():
        futures.append(batcher.submit("classify", rows))
        futures[-1].add_done_callback(lambda _, name=name: ended.append(name))
        time.sleep(0.01)
    batcher.start()  # a stop would drain the line in its order
    wait(futures, 30)
    batcher.stop()
    assert ended == sorted(texts, key=lambda name: name != first)


# ---- clients that leave, the end


def test_a_client_that_left_costs_no_pass(make):
    batcher = make()
    futures = [batcher.submit("classify", [{"text": "red"}]) for _ in range(4)]
    assert futures[0].cancel() and futures[2].cancel()
    batcher.start()
    assert futures[1].result(30) == futures[3].result(30)
    with pytest.raises(CancelledError):
        futures[0].result()
    batcher.stop()
    assert batcher.metrics.registry.get_sample_value("anabranch_batch_rows_sum") == 2 and batcher.waiting == 0


def test_the_end_answers_what_is_in_the_line(make):
    batcher = make(wait=100)
    futures = [batcher.submit("all", [{"text": "red"}]) for _ in range(20)]
    batcher.start()
    batcher.stop()
    assert all(f.done() and f.result() for f in futures) and not batcher.alive
    with pytest.raises(Busy):
        batcher.submit("classify", [])
    with pytest.raises(Busy):
        batcher.change(lambda model: None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_has_failed(make, monkeypatch):
    batcher = make()
    monkeypatch.setattr(batcher, "_loop", lambda: 1 / 0)
    futures = [batcher.submit("classify", [{"text": "red"}]), batcher.change(lambda model: None)]
    batcher.start()
    for future in futures:
        with pytest.raises(WorkError, match="thread has ended"):
            future.result(5)
    with pytest.raises(Busy):
        batcher.submit("classify", [])


# ---- changes


def test_changes_stand_in_line(make, offline):
    batcher = make()
    before = batcher.submit("classify", made.ROWS["classify"])
    change = batcher.change(lambda model: model.drop("classify"))
    behind = batcher.submit("classify", made.ROWS["classify"])
    other = batcher.submit("pair", made.ROWS["pair"])
    broken = batcher.change(lambda model: model.drop("nothing"))
    batcher.start()
    assert before.result(30) == offline.predict("classify", made.ROWS["classify"]) and change.result(30) is None
    with pytest.raises(Unknown):
        behind.result(30)
    with pytest.raises(InputError, match="no task 'nothing'"):
        broken.result(30)
    assert other.result(30) == offline.predict("pair", made.ROWS["pair"])
    with pytest.raises(Unknown):
        batcher.submit("classify", [])


def test_tasks_come_and_go_under_load_and_nobody_gets_a_wrong_answer(make, offline, tmp_path):
    new = load(made.bundle(tmp_path / "new", {"extra": "classify"}, seed=5))
    batcher = make()
    batcher.start()
    wanted = {t: offline.predict(t, rows_of(t, offline)) for t in ("pair", "tag", "classify", "a")}
    extra, over, wrong, counts = new.predict("extra", made.ROWS["classify"]), threading.Event(), [], {"extra": 0, "none": 0}

    def client() -> None:
        while not over.is_set():
            for task, answers in wanted.items():
                if not made.close(batcher.submit(task, rows_of(task, offline)).result(30), answers):
                    wrong.append(task)
            try:
                found = batcher.submit("extra", made.ROWS["classify"]).result(30)
                counts["extra"] += 1
                if not made.close(found, extra):
                    wrong.append("extra")
            except Unknown:
                counts["none"] += 1

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        batcher.change(lambda model: model.take(new, "extra", "extra")).result(30)
        time.sleep(0.03)
        batcher.change(lambda model: model.drop("extra")).result(30)
        time.sleep(0.01)
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong and counts["extra"]
