"""Tasks: eight kinds, label spaces, splits that leak nothing, odd data counted, wrong data told with its place."""

import gzip
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import InputError
from anabranch.task.data import Rows, check_data, load_task
from anabranch.task.plan import TaskSpec, read_plan
from anabranch.task.source import NAMES
from anabranch.task.split import apportion, classes, fold, hold_out, limited

DATA = Path(os.environ.get("ANABRANCH_DATA", Path(__file__).parents[2] / "../shared/data/text"))


def put(folder: Path, **files) -> Path:
    """Write files, named without their dots: lists as JSON lines, dicts as JSON, text as it is."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        stem, _, ending = name.rpartition("_")
        lines = "".join(json.dumps(row) + "\n" for row in content) if isinstance(content, list) else content
        (folder / f"{stem}.{ending}").write_text(json.dumps(lines) if isinstance(lines, dict) else lines)
    return folder


def rows(n: int = 40, labels=("a", "b"), **more) -> list[dict]:
    return [{"text": f"row {i}", "label": labels[i % len(labels)], **more} for i in range(n)]


def loaded(folder: Path, **spec):
    return load_task("t", TaskSpec(data=str(folder), **spec))


def fails(folder: Path, *words: str, **spec) -> None:
    """Loading fails, and the message has all of ``words``."""
    with pytest.raises(InputError) as caught:
        loaded(folder, **spec)
    assert str(caught.value).startswith("task t: ")
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def everything(task, column: str) -> list:
    return [value for split in (task.train, task.valid, task.test) for value in getattr(split, column)]


# ---- kinds ---------------------------------------------------------------------------------------

DOCS = [{"id": f"d{i}", "text": f"document {i}"} for i in range(5)]
KINDS = [
    # what a row holds, task.json, the kind, labels, what the first two rows' labels become
    ([{"label": "no"}, {"label": "yes"}], {}, "classify", ["no", "yes"], [0, 1]),
    ([{"label": 1}, {"label": 0}], {"labels": ["no", "yes"]}, "classify", ["no", "yes"], [1, 0]),
    ([{"label": 10}, {"label": 9.0}], {}, "classify", ["9", "10"], [1, 0]),
    ([{"label": True}, {"label": False}], {}, "classify", ["false", "true"], [1, 0]),
    ([{"label": 3}, {"label": 2}], {"labels": [3, 2]}, "classify", ["3", "2"], [0, 1]),
    ([{"label": ["b", "a"]}, {"label": []}], {}, "multilabel", ["a", "b"], [[0, 1], []]),
    ([{"label": [1]}, {"label": [0, 1]}], {"kind": "classify", "multilabel": True, "labels": ["x", "y"]}, "multilabel",
     ["x", "y"], [[1], [0, 1]]),
    ([{"label": 0.5}, {"label": 2}], {}, "regress", None, [[0.5], [2.0]]),
    ([{"label": [1.5, 2]}, {"label": [0, 1]}], {"targets": ["v", "a"]}, "regress", None, [[1.5, 2.0], [0.0, 1.0]]),
    ([{"label": 1.5, "text_b": "word"}, {"label": 2, "text_b": "w"}], {"kind": "regress"}, "regress", None,
     [[1.5], [2.0]]),
    ([{"tokens": ["A", "b"], "label": ["B-x", "O"]}, {"tokens": ["c"], "label": ["O"]}], {}, "tag", ["B-x", "O"],
     [[0, 1], [1]]),
    ([{"tokens": ["A", "b"], "label": [1, 0]}, {"tokens": ["c"], "label": [0]}],
     {"kind": "ner", "labels": ["O", "B-x"]}, "tag", ["O", "B-x"], [[1, 0], [0]]),
    ([{"text_b": "y", "label": "same"}, {"text_b": "z", "label": "other"}], {}, "pair", ["other", "same"], [1, 0]),
    ([{"text_b": "y", "label": 0}, {"text_b": "z", "label": 1}], {"kind": "pair-classify", "labels": ["n", "y"]},
     "pair", ["n", "y"], [0, 1]),
    ([{"text_b": "y", "label": 0.5}, {"text_b": "z", "label": 4}], {}, "pair", None, [[0.5], [4.0]]),
    ([{"choices": ["l", "r"], "label": 1}, {"choices": ["l", "r", "m"], "label": "m"}], {}, "choice", None, [1, 2]),
    ([{"label": ["d0", "d3"]}, {"label": "d1"}], {"kind": "retrieve"}, "retrieve", None, [["d0", "d3"], ["d1"]]),
    ([{"label": "answer one"}, {"label": "two"}], {"kind": "generation"}, "generate", None, ["answer one", "two"]),
]  # fmt: skip


@pytest.mark.parametrize("cells, meta, kind, labels, codes", KINDS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_kind(tmp_path, cells, meta, kind, labels, codes):
    train = [{"text": f"row {i}", **cells[i % 2]} for i in range(30)]
    test = [{"text": f"test {i}", **cells[i % 2]} for i in range(2)]
    corpus = {"corpus_jsonl": DOCS} if kind == "retrieve" else {}
    task = loaded(put(tmp_path / "t", train_jsonl=train, test_jsonl=test, task_json=meta, **corpus))
    assert (task.kind, task.labels, task.test.label) == (kind, labels, codes)
    assert len(task.train) == 27 and len(task.valid) == 3 and task.counts["train"] == 27
    assert task.targets == meta.get("targets") and task.warnings == []
    assert task.test.text == ["test 0", "test 1"]
    for column in ("text_b", "tokens", "choices"):
        used = column in cells[0]
        assert getattr(task.test, column) == ([cell[column] for cell in cells] if used else None)
    assert task.corpus == ({f"d{i}": f"document {i}" for i in range(5)} if kind == "retrieve" else None)


def test_csv_cells_hold_lists_and_numbers(tmp_path):
    table = "words,tags,topics,options,answer,score,docs\n" + "".join(
        f'New York {i},B-x I-x O,"{"x|y" if i % 2 else "[]"}",left|right,right,{i}.5,"[""d1"", ""d2""]"\n' for i in range(20)
    )
    put(tmp_path, a_csv=table, docs_csv="id,text\nd1,one\nd2,two\n")

    def first(**spec):
        task = load_task("t", TaskSpec(data=str(tmp_path / "a.csv"), **spec))
        return task.kind, everything(task, "label")[0], task

    kind, label, task = first(tokens="words", label="tags")
    assert kind == "tag" and [task.labels[i] for i in label] == ["B-x", "I-x", "O"]
    assert task.train.tokens[0][:2] == ["New", "York"] and task.train.text[0].startswith("New York ")
    kind, _, task = first(text="words", label="topics", kind="multilabel")
    assert kind == "multilabel" and set(map(tuple, everything(task, "label"))) == {(0, 1), ()}
    kind, label, task = first(text="words", label="answer")
    assert (kind, label, task.train.choices[0]) == ("choice", 1, ["left", "right"])
    kind, label, _ = first(text="words", label="score")
    assert kind == "regress" and label[0] % 1 == 0.5
    kind, label, _ = first(text="words", label="docs", corpus=str(tmp_path / "docs.csv"))
    assert (kind, label) == ("retrieve", ["d1", "d2"])
    kind, label, _ = first(text="words", label="tags", kind="tag")  # tokens: the words of the text
    assert kind == "tag" and len(label) == 3


def test_several_label_columns(tmp_path):
    values = [(i % 2, int(i % 3 == 0), "" if i == 7 else i / 2) for i in range(30)]
    put(
        tmp_path,
        a_csv="text,toxic,rude,score\n" + "".join(f"row {i},{a},{b},{c}\n" for i, (a, b, c) in enumerate(values)),
    )
    task = loaded(tmp_path / "a.csv", label=["toxic", "rude"])
    assert (task.kind, task.labels, task.targets) == ("multilabel", ["toxic", "rude"], None)
    by_text = dict(zip(everything(task, "text"), everything(task, "label"), strict=True))
    assert by_text == {f"row {i}": [k for k in (0, 1) if value[k]] for i, value in enumerate(values)}
    task = loaded(tmp_path / "a.csv", label=["toxic", "score"])
    assert (task.kind, task.labels, task.targets) == ("regress", None, ["toxic", "score"])
    assert task.counts["missing"] == 1 and everything(task, "label").count(None) == 1


def test_columns_of_flags_hold_flags(tmp_path):
    put(tmp_path, a_csv="text,x,y\n" + "row,0,1\n" * 5 + "odd,0,2\n")
    fails(tmp_path / "a.csv", "a.csv, line 7, column 'x, y': expected 0 or 1 in each label column, got 0, 2",
          label=["x", "y"], kind="multilabel")  # fmt: skip


def test_choices_in_several_columns(tmp_path):
    text = "text,end0,end1,label\n" + "".join(f"row {i},stop {i},go {i},{i % 2}\n" for i in range(20))
    task = loaded(put(tmp_path, a_csv=text) / "a.csv", choices=["end0", "end1"])
    assert task.kind == "choice" and sorted(everything(task, "choices")[0][0].split()[0::2]) == ["stop"]


@pytest.mark.parametrize(
    "labels, kind",
    [
        ([f"{i % 5}" for i in range(100)], "classify"),
        ([i % 20 for i in range(100)], "classify"),
        ([i % 21 for i in range(100)], "regress"),
        ([f"{i / 4}" for i in range(100)], "regress"),
        ([f"{i / 4}" for i in range(99)] + ["x"], "regress told"),
        ([f"sentence {i}" for i in range(100)], "generate"),
        ([f"name {i % 50}" for i in range(100)], "classify"),
        (["1", "2", "unknown"] * 30, "classify"),
        ([[i % 2, 1] for i in range(100)], "multilabel"),
        ([[i / 2, 1] for i in range(100)], "regress"),
    ],
)
def test_kinds_are_inferred(tmp_path, labels, kind):
    put(tmp_path, a_jsonl=[{"text": f"row {i}", "label": label} for i, label in enumerate(labels)])
    if kind == "regress told":
        fails(tmp_path / "a.jsonl", "a.jsonl, line 100, column 'label': expected a number, got 'x'", "type kind: classify")
    else:
        assert loaded(tmp_path / "a.jsonl").kind == kind


def test_tokens_of_another_task_do_not_make_a_tag_task(tmp_path):
    put(tmp_path, a_jsonl=[r | {"tokens": r["text"].split()} for r in rows()])
    task = loaded(tmp_path / "a.jsonl")
    assert task.kind == "classify" and task.train.tokens is None


# ---- columns, label spaces, precedence -----------------------------------------------------------


def test_usual_columns_are_found_in_any_case(tmp_path):
    put(tmp_path, a_csv="Sentence1,Sentence2,Category\n" + "".join(f"s {i},t {i},{'ab'[i % 2]}\n" for i in range(20)))
    task = loaded(tmp_path / "a.csv")
    assert task.kind == "pair" and task.train.text[0][0] == "s" and task.train.text_b[0][0] == "t"
    assert loaded(tmp_path / "a.csv", kind="classify").kind == "classify"  # nobody named a second text
    assert loaded(tmp_path / "a.csv", kind="classify", text_b="Sentence2").kind == "pair"


def test_columns_that_are_not_there_or_not_clear(tmp_path):
    put(
        tmp_path,
        a_csv="body,title,label,hours\n" + "x,y,a,1\n" * 3,
        b_csv="x,y\n1,2\n",
        c_jsonl=[{"text": "x", "goal": 1}],
    )
    fails(tmp_path / "a.csv", "a.csv, line 1: body, title could each be the text: type text: body, for example")
    fails(tmp_path / "a.csv", "a.csv, line 1, column 'bdy': no such column for the text; did you mean body?", text="bdy")
    fails(
        tmp_path / "a.csv",
        "column 'hour': no such column for the label; did you mean hours?",
        text="body",
        label="hour",
    )
    fails(tmp_path / "b.csv", "b.csv, line 1: which column is the text? type text: COLUMN; columns are x, y")
    fails(tmp_path / "c.jsonl", "c.jsonl, line 1: which column is the label? type label: COLUMN; columns are text, goal")
    folder = put(tmp_path / "t", train_jsonl=rows(), test_csv="text,class\nx,a\n")
    fails(folder, "test.csv, line 1, column 'label': no such column for the label; choose from class, text")
    fails(tmp_path / "a.csv", "kind pair needs text_b: COLUMN", text="body", kind="pair")
    fails(tmp_path / "a.csv", "kind choice needs choices: COLUMN", text="body", kind="choice")
    fails(tmp_path / "a.csv", "kind retrieve needs corpus: FILE, of id and text", text="body", kind="retrieve")


def test_declared_labels_are_the_space(tmp_path):
    put(tmp_path, a_csv="text,label\n" + "x,refund\ny,card\nz,refnd\n" * 9)
    fails(tmp_path / "a.csv", "line 4, column 'label': 'refnd' is not one of the 3 declared labels",
          "or their indices 0 to 2; did you mean refund?", labels=["card", "refund", "other"])  # fmt: skip
    put(tmp_path, a_csv="text,label\n" + "".join(f"x{i},{'card' if i % 2 else 1}\n" for i in range(20)))
    task = loaded(tmp_path / "a.csv", labels=["card", "refund", "other"])  # names and indices, also from CSV
    assert task.labels == ["card", "refund", "other"] and set(everything(task, "label")) == {0, 1}
    put(tmp_path, a_jsonl=rows(labels=(0, 3)))
    fails(tmp_path / "a.jsonl", "line 2, column 'label': '3' is not one of", "indices 0 to 1", labels=["no", "yes"])
    put(tmp_path, a_jsonl=rows(labels=(0, -1)))
    fails(tmp_path / "a.jsonl", "line 2, column 'label': '-1' is not one of", labels=["no", "yes"])


def test_class_names_of_saved_folders_are_declared(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "words": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-x"])),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["zero", "one", "two"]),
        }
    )
    cells = {"words": [["a", "b"]] * 30, "ner_tags": [[0, 1]] * 30, "label": [0, 2, -1] * 10}
    data = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(30)]} | cells, features=features)
    data.save_to_disk(tmp_path / "saved")
    task = loaded(tmp_path / "saved", label="label")
    assert (task.kind, task.labels, task.counts["missing"]) == ("classify", ["zero", "one", "two"], 10)
    task = loaded(tmp_path / "saved", label="ner_tags")
    assert (task.kind, task.labels, task.train.label[0]) == ("tag", ["O", "B-x"], [0, 1])


def test_the_plan_wins_over_task_json(tmp_path):
    meta = {"kind": "classify", "metric": "macro_f1", "labels": ["b", "a"], "max_length": 64, "weight": 2.0,
            "description": "told", "text": "body", "split": "published", "licence": "CC0"}  # fmt: skip
    train = [{"body": f"row {i}", "label": "ab"[i % 2], "title": f"title {i}"} for i in range(30)]
    folder = put(tmp_path / "t", train_jsonl=train, task_json=meta)
    task = loaded(folder)
    assert (task.metric, task.labels, task.max_length, task.weight) == ("macro_f1", ["b", "a"], 64, 2.0)
    assert task.description == "told" and task.train.text[0].startswith("row")
    task = loaded(folder, metric="accuracy", labels=["a", "b"], max_length=32, weight=1, description="", text="title")
    assert (task.metric, task.labels, task.max_length, task.weight) == ("accuracy", ["a", "b"], 32, 1.0)
    assert task.description == "" and task.train.text[0].startswith("title")


def test_task_json_is_checked(tmp_path):
    folder = put(tmp_path / "t", train_jsonl=rows(), task_json='{"kind": "classify",\n "labels" ["a"]}')
    fails(folder, "task.json, line 2, column 11: broken JSON: Expecting ':' delimiter")
    fails(put(folder, task_json={"kind": "clasify"}), "task.json: kind: no kind 'clasify'; did you mean classify")
    fails(put(folder, task_json={"labels": "a,b"}), "task.json: labels: expected a valid list, got 'a,b'")
    fails(put(folder, task_json={"targets": "a"}), "task.json: targets is a list of names, got 'a'")
    fails(put(folder, task_json="[1]"), "task.json, line 1: expected an object such as")
    for path in ("a\0b.jsonl", "\ud800.jsonl"):
        with pytest.raises(InputError, match="task.json"):
            loaded(put(folder, task_json={"train": path}))


def test_task_json_may_not_leave_its_folder(tmp_path):
    put(tmp_path, secret_jsonl=rows())
    folder = put(tmp_path / "t", train_jsonl=rows(), mine_jsonl=rows(20))
    os.symlink(tmp_path / "secret.jsonl", folder / "link.jsonl")
    for key in ("train", "valid", "test", "corpus"):
        for path in ("../secret.jsonl", str(tmp_path / "secret.jsonl"), "link.jsonl", "x/../../secret.jsonl"):
            fails(put(folder, task_json={key: path}), f"task.json: {key} leaves the task folder: '{path}'")
    assert len(loaded(put(folder, task_json={"train": "mine.jsonl"}), split={"test": 0.5, "valid": 0.1}).test) == 10
    assert loaded(folder, train=str(tmp_path / "secret.jsonl")).counts["test"] == 8  # the plan is the user's own


def test_what_a_task_folder_holds(tmp_path):
    fails(
        put(tmp_path / "none", other_csv="a\n1\n"),
        "expected train.jsonl, train.csv or another train file, found other.csv",
    )
    fails(put(tmp_path / "two", train_csv="a\n", train_tsv="a\n"), "train.csv and train.tsv are both there: keep one")
    fails(tmp_path / "nothing.csv", "nothing.csv: no such file")
    folder = put(tmp_path / "t", train_csv="text,label\n" + "x,a\ny,b\n" * 20, dev_jsonl=rows(4), test_tsv="text\tlabel\nz\ta\n")
    assert {split: loaded(folder).counts[split] for split in ("train", "valid", "test")} == {
        "train": 40,
        "valid": 4,
        "test": 1,
    }


# ---- splits and limits ---------------------------------------------------------------------------


def test_held_out_splits_are_seeded_by_seed_and_name(tmp_path):
    folder = put(tmp_path / "t", train_jsonl=rows(100))

    def split(name="t", seed=0):
        task = load_task(name, TaskSpec(data=str(folder)), seed=seed)
        return task.train.text, task.valid.text, task.test.text

    first = split()
    assert [len(part) for part in first] == [72, 8, 20] and first == split()
    assert sorted(sum(first, [])) == sorted(row["text"] for row in rows(100))
    assert split(seed=1)[2] != first[2] and split(name="u")[2] != first[2]


def test_the_same_text_never_sits_on_both_sides(tmp_path):
    texts = [f"Text {i // 3}" if i % 2 else f"  text   {i // 3} " for i in range(300)]
    put(tmp_path, a_jsonl=[{"text": text, "text_b": f"b {i}", "label": i % 2} for i, text in enumerate(texts)])
    task = loaded(tmp_path / "a.jsonl")
    train, valid, test = ({fold(text) for text in part.text} for part in (task.train, task.valid, task.test))
    assert len(train) + len(valid) + len(test) == 100 and (len(test), len(valid)) == (20, 8)


def test_one_instruction_for_all_rows_is_split_by_whole_input(tmp_path):
    cells = [{"text": "Which is sarcastic?", "choices": [f"a {i // 2}", f"b {i // 2}"], "label": i % 2} for i in range(60)]
    task = loaded(put(tmp_path, a_jsonl=cells) / "a.jsonl")
    pairs = [set(map(tuple, part.choices)) for part in (task.train, task.valid, task.test)]
    assert sum(map(len, pairs)) == 30 and len(pairs[2]) == 6 and len(task.test) == 12


def test_split_column_and_shares(tmp_path):
    cells = [row | {"fold": ["train", "train", "Dev", "test"][i // 2 % 4]} for i, row in enumerate(rows(80))]
    put(tmp_path, a_jsonl=cells, b_jsonl=[*cells, {"text": "x", "label": "a", "fold": "tset"}])
    assert [loaded(tmp_path / "a.jsonl", split="fold").counts[s] for s in ("train", "valid", "test")] == [40, 20, 20]
    task = loaded(tmp_path / "a.jsonl", split={"test": 0.5, "valid": 0.0})
    assert (len(task.train), len(task.valid), len(task.test)) == (40, 0, 40)
    fails(tmp_path / "b.jsonl", "line 81, column 'fold': expected train, valid or test, got 'tset'", split="fold")
    fails(tmp_path / "a.jsonl", "column 'flod': no such column for the split; did you mean fold?", split="flod")
    put(tmp_path, c_jsonl=[row for row in cells if row["fold"] == "test"])
    fails(tmp_path / "c.jsonl", "c.jsonl, line 1, column 'fold': no row is marked train", split="fold")
    fails(put(tmp_path / "t", train_jsonl=cells, test_jsonl=cells), "here are train, test: leave split out", split="fold")


def test_too_few_rows_to_hold_out(tmp_path):
    put(tmp_path, a_jsonl=rows(2))
    fails(tmp_path / "a.jsonl", "a.jsonl: 2 rows are too few to hold out test: give test: FILE, or more rows")


def test_limit_is_stratified_and_counts_the_validation_rows(tmp_path):
    labels = ["often"] * 90 + ["seldom"] * 9 + ["once"]
    test = [{"text": "t", "label": "once"}, {"text": "u", "label": "often"}]
    folder = put(tmp_path / "t", test_jsonl=test,
                 train_jsonl=[{"text": f"r {i}", "label": label} for i, label in enumerate(labels)])  # fmt: skip
    task = loaded(folder, limit=20)
    assert len(task.train) + len(task.valid) == 20 and task.counts["unseen"] == 0
    both = Counter(task.labels[label] for label in task.train.label + task.valid.label)
    assert both == {"often": 18, "seldom": 1, "once": 1}
    assert {task.labels[label] for label in task.train.label} == {"often", "seldom", "once"}
    assert task.train.text == sorted(task.train.text, key=lambda text: int(text.split()[1]))  # the order of the file


LABELS = {
    "classify": st.integers(0, 4),
    "multilabel": st.lists(st.integers(0, 4), max_size=3, unique=True),
    "regress": st.lists(st.floats(-5, 5), min_size=1, max_size=1),
    "generate": st.text("ab", max_size=2),
}


@pytest.mark.parametrize("kind", LABELS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_splits_and_limits_hold_their_promises(kind, data):
    labels = data.draw(st.lists(st.none() | LABELS[kind], min_size=1, max_size=60))
    texts = data.draw(st.lists(st.integers(0, 30), min_size=len(labels), max_size=len(labels)))
    table = Rows([f"{'T' if i % 2 else 't'}ext {t}" for i, t in enumerate(texts)], None, None, None, labels)
    share, seed = data.draw(st.sampled_from([0.1, 0.2, 0.5])), data.draw(st.integers(0, 3))
    kept, held = hold_out(table, share, Random(seed))
    assert len(kept) + len(held) == len(table)
    assert not set(map(fold, kept.text)) & set(map(fold, held.text))
    assert None not in held.label
    everywhere, left = (set().union(*map(classes, part.label)) for part in (table, kept))
    assert left == everywhere and len(kept) > 0
    limit = data.draw(st.integers(1, 60))
    few = limited(table, limit, Random(seed))
    assert set().union(*map(classes, few.label)) == everywhere
    assert min(limit, len(table)) <= len(few) <= max(limit, len(everywhere))
    assert few == limited(table, limit, Random(seed))


@settings(deadline=None)
@given(st.dictionaries(st.integers(), st.integers(1, 50), min_size=1), st.integers(0, 300))
def test_apportion_is_exact_and_proportional(sizes, total):
    total = min(total, sum(sizes.values()))
    quota = apportion(sizes, total, {})
    assert sum(quota.values()) == total
    assert all(abs(quota[s] - total * size / sum(sizes.values())) < 1 and quota[s] <= size for s, size in sizes.items())


# ---- bad input -----------------------------------------------------------------------------------

GOOD = rows(10)
BAD = [
    (GOOD[:3] + [{"text": "x", "label": float("nan")}], {"kind": "regress"}, "line 1", "expected a number, got 'a'"),
    ([{"text": "x", "label": 1.5}, {"text": "y", "label": float("nan")}], {}, "line 2, column 'label'",
     "expected a finite number, got nan; leave the field empty where the label is missing"),
    ([{"text": "x", "label": 1.5}, {"text": "y", "label": 1e999}], {}, "line 2, column 'label'",
     "finite number, got inf"),
    ([{"text": "x", "label": [1.5, 2.0]}, {"text": "y", "label": [1.0]}], {}, "line 2, column 'label'",
     "expected 2 targets, got 1"),
    (GOOD + [{"text": "x", "label": float("nan")}], {"kind": "classify"}, "line 11, column 'label'",
     "label is nan; leave"),
    (GOOD + [{"text": "x", "label": ["a"]}], {"kind": "classify"}, "line 11, column 'label'",
     "expected one label, got ['a']"),
    (GOOD + [{"text": ["x"], "label": "a"}], {}, "line 11, column 'text'", "expected text, got ['x']"),
    (GOOD + [{"text": "\ud83d", "label": "a"}], {}, "bad.jsonl, line 11: half of a character: \\ud800 to"),
    ([{"tokens": ["a", "b"], "label": ["O", "X"]}, {"tokens": ["a", "b"], "label": ["O"]}], {},
     "line 2, column 'label'", "1 tags for 2 tokens; expected one tag a token"),
    ([{"text": "x", "choices": ["l", "r"], "label": 0}, {"text": "y", "choices": ["l", "r"], "label": 2}], {},
     "line 2, column 'label'", "expected the text of a choice or its index, 0 to 1, got 2"),
    ([{"text": "x", "choices": ["l"], "label": 0}], {}, "line 1, column 'choices'",
     "expected two choices or more, got 1"),
    ([{"text": "x", "text_b": "y", "label": 0.5}, {"text": "x", "text_b": "z", "label": "inf"}], {}, "line 2",
     "expected a finite number, got 'inf'"),
    (rows(10, labels=("a",)), {}, "every label is 'a'; expected two different ones or more for classify"),
    (rows(10, labels=("a",)), {"labels": ["a", "b"]}, "every label is 'a'; expected two different ones or more"),
    (rows(10, labels=(["a"],)), {}, "every label is 'a'; expected two different ones or more for multilabel"),
    (rows(10, labels=(["O"],), tokens=["x"]), {}, "every label is 'O'; expected two different ones or more for tag"),
    (rows(10, labels=(0.5,)), {}, "every label is [0.5]; expected two different ones or more for regress"),
    (rows(10, labels=(None, "")), {}, "no row has a label"),
]  # fmt: skip


@pytest.mark.parametrize("cells, spec, words", [(cells, spec, words) for cells, spec, *words in BAD])
def test_bad_rows_are_told_with_their_place(tmp_path, cells, spec, words):
    put(tmp_path, bad_jsonl=cells)
    fails(tmp_path / "bad.jsonl", "bad.jsonl", *words, **spec)


def test_the_corpus_is_checked(tmp_path):
    folder = put(tmp_path / "t", train_jsonl=rows(labels=("d0", "d9")), corpus_jsonl=DOCS)
    fails(folder, "train.jsonl, line 2, column 'label': the corpus has 5 documents, none of id 'd9'")
    fails(put(folder, corpus_jsonl=[*DOCS, DOCS[2]]), "corpus.jsonl, line 6, column 'id': the id 'd2' is there twice")
    fails(put(folder, corpus_jsonl=[*DOCS, {"text": "x"}]), "line 6, column 'id': a document without an id")
    fails(put(folder, corpus_jsonl=[{"key": 1, "text": "x"}]), "a corpus has the columns id and text, got key, text")


def test_broken_files_are_told_with_the_task(tmp_path):
    folder = put(tmp_path / "t", train_jsonl=rows())
    (folder / "test.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x", "label": "a"}\n' * 1000)[:40])
    fails(folder, "test.jsonl.gz, line ", "broken gzip")
    put(tmp_path, ragged_csv="text,label\nx,a\ny,b,c\n", empty_csv="")
    fails(tmp_path / "ragged.csv", "ragged.csv, line 3: 3 fields, the header has 2")
    fails(tmp_path / "empty.csv", "empty.csv, line 1: is empty; expected rows")
    with pytest.raises(InputError, match="on_error is stop or skip, got 'ignore'"):
        load_task("t", TaskSpec(data=str(folder)), on_error="ignore")


def test_wrong_rows_may_be_skipped_and_counted(tmp_path):
    lines = [json.dumps(row) for row in rows(30)]
    lines[4], lines[9], lines[20] = "{broken", '{"text": ["x"], "label": "a"}', '{"text": "x", "label": "zzz"}'
    put(tmp_path, a_jsonl="\n".join(lines))
    spec = TaskSpec(data=str(tmp_path / "a.jsonl"), labels=["a", "b"])
    task = load_task("t", spec, on_error="skip")
    assert task.counts["skipped"] == 3 and len(everything(task, "text")) == 27
    assert task.warnings[0].startswith("wrong rows, skipped: 3 (first: ") and "a.jsonl, line 5" in task.warnings[0]
    put(tmp_path, a_jsonl=[{"text": ["x"], "label": "a"}])
    with pytest.raises(InputError, match="a.jsonl: no row can be used"):
        load_task("t", spec, on_error="skip")


# ---- odd but usable ------------------------------------------------------------------------------


def test_odd_rows_are_counted_and_warned_about(tmp_path):
    train = rows(20) + [
        {"text": "ROW  1", "label": "b"},  # line 21: a duplicate of row 1
        {"text": "row 2", "label": "b"},  # line 22: row 2 is an a
        {"text": "  ", "label": "a"},
        {"label": "a"},  # line 24: again without text
        {"text": "x" * 100_000, "label": "a"},
        {"text": "no label", "label": None},
        {"text": "nor here", "label": " "},
    ]
    test = [{"text": "Row 3", "label": "b"}, {"text": "new", "label": "a"}, {"text": "unlabelled", "label": None}]
    task = loaded(put(tmp_path / "t", train_jsonl=train, test_jsonl=test))
    odd = {"duplicates": 2, "conflicts": 1, "empty": 2, "long": 1, "missing": 3, "leaks": 1, "unseen": 0, "skipped": 0}
    assert {key: task.counts[key] for key in odd} == odd
    assert task.test.text == ["Row 3", "new"] and task.train.label.count(None) == 2 and None not in task.valid.label
    assert max(map(len, everything(task, "text"))) == 100_000
    told = "\n".join(task.warnings)
    for what, line in (("rows without a label: 3", 26), ("empty texts: 2", 23), ("or more, to be cut: 1", 25),
                       ("duplicates: 2", 21), ("with another label: 1", 22), ("in training too: 1", 1)):  # fmt: skip
        assert what in told and f"line {line})" in next(w for w in task.warnings if what in w), told


def test_a_label_seen_only_in_test(tmp_path):
    folder = put(tmp_path / "t", train_jsonl=rows(), test_jsonl=[*rows(4), {"text": "x", "label": "new"}])
    task = loaded(folder)
    assert task.counts["unseen"] == 1 and "labels seen only in test: 1 ('new')" in task.warnings
    assert task.labels == ["a", "b", "new"] and task.test.label[-1] == 2
    with pytest.raises(InputError, match=r"task t: .*test.jsonl: label seen only in test: 'new'; add training rows"):
        load_task("t", TaskSpec(data=str(folder)), strict=True)
    put(folder, test_jsonl=rows(4))
    assert load_task("t", TaskSpec(data=str(folder)), strict=True).counts["leaks"] == 4  # only warned about


def test_a_test_split_without_labels_is_replaced(tmp_path):
    folder = put(tmp_path / "t", train_jsonl=rows(50), test_jsonl=rows(5, labels=(None,)))
    task = loaded(folder)
    assert task.counts["test"] == 10 and "no row of test has a label: 20% of train is held out instead" in task.warnings


# ---- data check ----------------------------------------------------------------------------------


def test_check_data_collects_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(Path("good"), train_jsonl=rows(30), test_jsonl=[{"text": "row 1", "label": "b"}])
    put(Path("bad"), train_csv="text,label\nx,1.5\ny,nan\nz,2.5,\nu,inf\n" + "".join(f"r{i},{i}.5\n" for i in range(96)))
    put(Path(), plan_yaml="strict: true\ntasks:\n  good: {data: good}\n  bad: {data: bad}\n  none: {data: none.csv}\n")
    report = check_data("plan.yaml")
    assert json.loads(json.dumps(report)) == report
    assert (report["ok"], report["problems"], report["plan"]) == (False, 4, [])
    good, bad, none = (report["tasks"][name] for name in ("good", "bad", "none"))
    assert good == {
        "kind": "classify", "labels": 2, "rows": {"train": 27, "valid": 3, "test": 1}, "missing": 0, "empty": 0,
        "long": 0, "duplicates": 0, "conflicts": 0, "leaks": 1, "unseen": 0, "skipped": 0, "problems": [],
        "warnings": ["test rows that are in training too: 1 (first: good/test.jsonl, line 1)"],
    }  # fmt: skip
    assert bad["kind"] == "regress" and sum(bad["rows"].values()) == 97
    assert [(p["file"], p["line"], p["column"]) for p in bad["problems"]] == [
        ("bad/train.csv", 4, None), ("bad/train.csv", 3, "label"), ("bad/train.csv", 5, "label"),
    ]  # fmt: skip
    assert "the header has 2" in bad["problems"][0]["message"] and "got 'nan'" in bad["problems"][1]["message"]
    assert none["rows"] is None and none["problems"][0]["file"] == "none.csv"
    assert none["problems"][0]["message"].startswith("no such file")
    assert check_data({"tasks": {"good": {"data": "good"}}})["ok"]
    put(Path(), plan_yaml="tasks:\n  good: {dtaa: good}\n")
    broken = check_data("plan.yaml")
    assert not broken["ok"] and broken["plan"][0]["line"] == 2 and "did you mean data?" in broken["plan"][0]["message"]


# ---- documentation, real data, speed -------------------------------------------------------------------------


DOCS_PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.parametrize("kind", ["classify", "multilabel", "regress", "tag", "pair", "choice", "retrieve", "generate"])
def test_the_examples_of_the_documentation_run(tmp_path, kind):
    part = DOCS_PAGE.read_text(encoding="utf-8").split(f"\n### {kind}\n")[1].split("\n#")[0]
    lines, entry = (re.search(rf"```{language}\n(.*?)```", part, re.S)[1] for language in ("jsonl", "yaml"))
    two = [json.loads(line) for line in lines.splitlines()]
    cells = [row | ({"text": f"{row['text']} {i}"} if "text" in row else {}) for i in range(15) for row in two]
    if kind == "tag":
        cells = [row | {"tokens": [*row["tokens"], str(i)], "label": [*row["label"], "O"]} for i, row in enumerate(cells)]
    docs = {"corpus_jsonl": DOCS} if kind == "retrieve" else {}
    folder = put(tmp_path / "t", train_jsonl=cells, **docs)
    assert loaded(folder, **({"kind": kind} if kind == "generate" else {})).kind == kind
    (name, spec), *more = read_plan({"tasks": yaml.safe_load(entry)}).tasks.items()
    assert not more and spec.kind in (kind, None)


def test_the_documentation_tells_every_key_and_default():
    page = DOCS_PAGE.read_text(encoding="utf-8")
    for word in (*TaskSpec.model_fields, *(name for names in NAMES.values() for name in names[:1]), *NAMES["label"]):
        assert f"`{word}`" in page, word


def test_ten_thousand_packed_rows_load_in_well_under_a_second(tmp_path):
    cells = [{"text": f"please tell me how to do the thing number {i} today", "label": f"intent {i % 80}"} for i in range(10_000)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, cells)).encode()))
    took = []
    for _ in range(3):
        start = time.process_time()
        task = load_task("t", TaskSpec(data=str(tmp_path / "a.jsonl.gz")))
        took.append(time.process_time() - start)
    assert task.counts["test"] == 2_000 and len(task.labels) == 80
    assert min(took) < 1.0, took


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")
def test_every_shared_task_loads():
    plan = read_plan(DATA)
    kinds = Counter()
    for name, spec in plan.tasks.items():
        meta = json.loads((DATA / name / "task.json").read_text())
        task = load_task(name, spec, strict=True)
        assert len(task.train) + len(task.valid) == meta["n_train"] and len(task.test) == meta["n_test"], name
        assert (task.labels, task.metric, task.targets) == (meta["labels"], meta["metric"], meta.get("targets")), name
        assert task.counts["leaks"] == task.counts["duplicates"] == task.counts["unseen"] == 0, name
        assert len(task.corpus or ()) == meta.get("n_corpus", 0), name
        kinds[task.kind] += 1
    assert kinds == {
        "classify": 26, "multilabel": 2, "pair": 6, "regress": 3, "tag": 10, "retrieve": 3, "choice": 10,
    }  # fmt: skip
