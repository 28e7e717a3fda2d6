"""A loaded bundle: the shape of every answer, one row alone and among others, what is missing, what is wrong."""

import json
import random
import types
from typing import Any

import pytest
import torch
from engine import _tiny as tiny

from anabranch.engine.backbone import backbone_of
from anabranch.engine.model import Model, load
from anabranch.errors import InputError

ROWS = {kind: tiny.rows(kind, 12, seed=9) for kind in tiny.KINDS}


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def model(request) -> Model:
    return load(tiny.fitted(request.param)[0])


def kinds(model: Model) -> list[str]:
    return list(model.served)


def flat(value: Any) -> list[float]:
    """All numbers of an answer."""
    if isinstance(value, dict):
        return [x for v in value.values() for x in flat(v)]
    return [x for v in value for x in flat(v)] if isinstance(value, list) else [value] if isinstance(value, float) else []


def words(value: Any) -> Any:
    """An answer without its numbers."""
    if isinstance(value, dict):
        return {k: words(v) for k, v in value.items()}
    return [words(v) for v in value] if isinstance(value, list) else None if isinstance(value, float) else value


# ---- the contract


def test_the_shape_of_every_answer(model):
    answers = {kind: model.predict(kind, ROWS[kind]) for kind in kinds(model)}
    for kind, found in answers.items():
        assert len(found) == 12 and all(set(a) - {"abstain"} == {"prediction", "scores"} for a in found), kind
        assert json.loads(json.dumps(found)) == found
    for a in answers["classify"]:
        assert a["prediction"] in tiny.COLOURS and set(a["scores"]) == set(tiny.COLOURS)
        assert sum(a["scores"].values()) == pytest.approx(1, abs=1e-5)
    for a in answers["multilabel"]:
        assert set(a["prediction"]) <= set(tiny.ANIMALS) and set(a["scores"]) == set(tiny.ANIMALS)
    for a, row in zip(answers["tag"], ROWS["tag"], strict=True):
        assert len(a["prediction"]) == len(a["scores"]) == len(row["tokens"])
        assert set(a["prediction"]) <= {"O", "B-PER", "I-PER", "B-BEAST"}
    assert all(isinstance(a["prediction"], float) and a["prediction"] == a["scores"] for a in answers["regress"])
    assert all(a["prediction"] in ("same", "other") and set(a["scores"]) == {"same", "other"} for a in answers["pair"])
    for a, row in zip(answers["choice"], ROWS["choice"], strict=True):
        assert a["prediction"] in range(len(row["choices"])) and len(a["scores"]) == len(row["choices"])
    for a in answers["retrieve"]:
        ranks = [d["score"] for d in a["prediction"]]
        assert {d["id"] for d in a["prediction"]} == set(tiny.DOCUMENTS) and ranks == sorted(ranks, reverse=True)
    if "generate" in answers:
        assert [a["prediction"] for a in answers["generate"]] == [r["label"] for r in ROWS["generate"]]


def test_rows_for_all_tasks_are_answered_by_those_that_can_read_them(model):
    rows = [{"text": "red"}, {"text": "red", "text_b": "blue red"}, {"tokens": ["ann", "lee"]}, {"text": "red", "choices": ["red", "blue"]},
            {}, {"text": None}, {"text": 3}, {"text": "x", "choices": []}, {"text": "x", "tokens": "ann lee"}]  # fmt: skip
    plain = {"classify", "multilabel", "regress", "retrieve", "generate"} & {*kinds(model)}
    reads = [plain, plain | {"pair"}, {"tag"}, plain | {"choice"}, set(), set(), set(), plain, plain]
    for answer, wanted in zip(model.predict("all", rows), reads, strict=True):
        assert list(answer) == kinds(model) and {n for n, a in answer.items() if a is not None} == wanted


# ---- alone and together


def test_all_tasks_at_once_answer_as_each_alone_bit_for_bit(model):
    rows = [r for kind in kinds(model) for r in ROWS[kind][:4]]
    random.Random(0).shuffle(rows)
    together = model.predict("all", rows)
    for name in kinds(model):
        ids = [i for i, answer in enumerate(together) if answer[name] is not None]
        assert len(ids) >= 4 and model.predict(name, [rows[i] for i in ids]) == [together[i][name] for i in ids]
    some = kinds(model)[:3]
    assert model.predict(some, rows) == [{n: answer[n] for n in some} for answer in together]


def test_a_row_is_answered_alike_alone_and_among_others_in_any_order(model):
    for name in kinds(model):
        rows = ROWS[name] + [r | {k: v + " the" * 60 for k, v in r.items() if k == "text"} for r in ROWS[name][:3]]
        whole = model.predict(name, rows)
        order = random.Random(1).sample(range(len(rows)), len(rows))
        alone = [model.predict(name, [row])[0] for row in rows[::3]]
        for found, wanted in ((model.predict(name, [rows[i] for i in order]), [whole[i] for i in order]), (alone, whole[::3])):
            assert words(found) == words(wanted)
            assert flat(found) == pytest.approx(flat(wanted), abs=1e-5 * (100 if name == "regress" else 1))


def test_two_models_of_one_bundle_do_not_disturb_each_other():
    out = tiny.fitted("bert")[0]
    a, b = load(out), load(out)
    first = a.predict("all", ROWS["pair"])
    b.predict("tag", ROWS["tag"])
    assert a.predict("all", ROWS["pair"]) == first == b.predict("all", ROWS["pair"])


# ---- odd and wrong requests


def test_odd_rows(model):
    odd = ["", " ", "zebra", "red " * 100_000, "\0\n\u2028", "é" * 50]
    for name in {"classify", "multilabel", "regress", "retrieve", "generate"} & {*kinds(model)}:
        found = model.predict(name, odd)
        assert len(found) == len(odd) and all(x == x for x in flat(found))
        assert model.predict(name, [{"text": t} for t in odd]) == found and model.predict(name, []) == []
    long = model.predict("tag", [{"tokens": ["ann"] * 500}, {"tokens": [""]}, {"tokens": ["x" * 10_000, "ann"]}])
    assert (
        [len(a["prediction"]) for a in long] == [500, 1, 2] and long[0]["prediction"][400] == "O" and long[0]["scores"][400] == 0
    )
    assert len(model.predict("choice", [{"text": "", "choices": ["", "a" * 9999, "red"]}])[0]["scores"]) == 3
    assert model.predict("all", []) == []


@pytest.mark.parametrize(("task", "rows", "said"), [
    ("classify", ["a", {"txt": "b"}], "row 2: task classify needs 'text', a string, got keys txt"),
    ("classify", [{}], "row 1: .* got keys none"), ("classify", [{"text": ["a"]}], "row 1: task classify needs 'text', a string"),
    ("pair", [{"text": "a"}], "row 1: task pair needs 'text_b'"), ("tag", ["a b"], "row 1: task tag needs 'tokens', a list of strings"),
    ("tag", [{"tokens": "a b"}], "needs 'tokens', a list"), ("tag", [{"tokens": []}], "needs 'tokens', a list"), ("tag", [{"tokens": [1]}], "needs 'tokens'"),
    ("choice", [{"text": "a", "choices": "b"}], "row 1: task choice needs 'choices', a list of strings"),
    ("classify", ["a", None], "row 2: expected a text or .*, got None"), ("all", [3], "row 1: expected a text"),
    ("classify", "red", "rows is a list .* put it in"), ("classify", {"text": "red"}, "rows is a list .* put it in"),
    ("clasify", [], "no task 'clasify' in this bundle; did you mean classify"), (["tag", "nope"], [], "no task 'nope'"),
])  # fmt: skip
def test_wrong_requests_are_answered_in_words(task, rows, said):
    with pytest.raises(InputError, match=said):
        load(tiny.fitted("bert")[0]).predict(task, rows)


def test_a_frame_is_read_by_its_rows(model):
    pandas = pytest.importorskip("pandas")
    rows = ROWS["pair"]
    assert model.predict("pair", pandas.DataFrame(rows)) == model.predict("pair", rows)
    texts = [r["text"] for r in rows]
    assert (
        model.predict("classify", pandas.Series(texts))
        == model.predict("classify", tuple(texts))
        == model.predict("classify", texts)
    )


def test_answers_below_the_settled_confidence_abstain(model):
    served = model.task("classify")
    kept = dict(served.post)
    try:
        found = model.predict("classify", ROWS["classify"])
        sure = sorted(max(a["scores"].values()) for a in found)
        served.post = kept | {"abstain": torch.tensor(sure[6])}
        flags = [a.get("abstain", False) for a in model.predict("classify", ROWS["classify"])]
        assert flags == [max(a["scores"].values()) < float(torch.tensor(sure[6])) for a in found] and 0 < sum(flags) < 12
        served.post = kept | {"abstain": torch.tensor(0.0)}
        assert not any("abstain" in a for a in model.predict("classify", ROWS["classify"]))
    finally:
        served.post = kept


# ---- evaluate, load


def test_evaluate_takes_one_task_or_a_folder_of_them(tmp_path, model):
    tiny.folder(tmp_path / "data" / "classify", "classify", {"train": 9, "test": 20}, seed=4)
    tiny.folder(tmp_path / "data" / "unknown", "classify", {"train": 9, "test": 20})
    found = model.evaluate(tmp_path / "data")
    assert set(found) == {"classify"} and found["classify"]["rows"] == 20
    test = [json.loads(line) for line in (tmp_path / "data" / "classify" / "test.jsonl").read_text().splitlines()]
    right = [a["prediction"] == r["label"] for a, r in zip(model.predict("classify", test), test, strict=True)]
    assert found["classify"]["score"] == pytest.approx(sum(right) / 20)
    with pytest.raises(InputError, match="has no folder named after a task of this bundle"):
        model.evaluate(tmp_path)


def test_labels_of_new_data_must_be_those_of_the_bundle(tmp_path, model):
    place = tiny.folder(tmp_path / "classify", "classify", {"train": 9, "test": 9})
    made = [json.loads(line) for line in (place / "test.jsonl").read_text().splitlines()]
    tiny.lines(place / "test.jsonl", [*made, {"text": "x", "label": "purple"}])
    with pytest.raises(InputError, match="task classify.*test.jsonl, line 10.*purple"):
        model.evaluate(tmp_path)
    assert model.evaluate(tmp_path, on_error="skip")["classify"]["rows"] == 9
    tiny.lines(place / "test.jsonl", made[::-1])
    (place / "task.json").unlink()
    assert model.evaluate(tmp_path)["classify"]["rows"] == 9


def test_what_a_model_says_of_itself(model):
    assert "tasks: classify (classify, " in repr(model) and set(model.tasks) == {*kinds(model)}
    assert model.tasks["tag"]["metric"] == "span_f1" and model.tasks["tag"]["rung"] in ("probe", "delta", "shared")


def test_loading_by_name_or_place(tmp_path, monkeypatch):
    out = tiny.fitted("bert")[0]
    assert load(str(out)).tasks == load(out / "bundle").tasks
    with pytest.raises(InputError, match="is not a run or a bundle"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match="no backbone 'minilmm'; did you mean minilm"):
        load("minilmm")
    folder = str(tiny.home() / "bert")
    assert backbone_of(folder, "float32") is backbone_of(folder, "float32") is not backbone_of(folder, "bfloat16")
    assert isinstance(load(out), Model) and not isinstance(types.SimpleNamespace(), Model)
