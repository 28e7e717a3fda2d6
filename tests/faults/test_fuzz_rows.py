"""Rows of every sort, in files and on stdin: read, or refused with their place. Never another error, a hang, or memory that stays."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from engine import _tiny as tiny
from faults import _soak
from faults._strategies import ODD_NUMBERS, ODD_TEXTS, altered, harmed, scalars, texts, values
from hypothesis import given
from hypothesis import strategies as st
from serve import _made as made

from anabranch import cli
from anabranch.engine.model import load
from anabranch.errors import InputError, WorkError
from anabranch.task.data import Task, load_task
from anabranch.task.plan import KINDS, TaskSpec, read_plan

COLUMNS = ["text", "text_b", "tokens", "choices", "label", "labels", "id", "score", "split", "Text", " label", "", "label "]
CELLS = ["the red cat", "red", "blue", "3", "0.5", "1|2", "red|blue", "[\"a\", \"b\"]", "[1, 0.5]", "ann sits", "O O", "d1", "", " ", "true"]  # fmt: skip


def told(place: Path, content: bytes, spec: dict[str, Any], ending: str = ".jsonl") -> Task | None:
    """The task of a file with this content, None where it is refused in words; counted with ``skip`` as with ``stop``."""
    path = place / f"rows{ending}"
    path.write_bytes(content)
    found = None
    for on_error in ("stop", "skip"):
        with _soak.within():
            try:
                found = load_task("t", TaskSpec.model_validate({"data": str(path)} | spec), on_error=on_error)  # type: ignore[arg-type]
                sizes = [len(part) for part in (found.train, found.valid, found.test)]
                assert min(sizes[:1]) > 0 and sizes == [found.counts[s] for s in ("train", "valid", "test")]
            except (InputError, WorkError) as error:
                assert str(error).startswith("task t: ") and len(str(error)) < 20_000, str(error)[:300]
    return found


specs = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(list(KINDS)), "label": st.sampled_from(["label", "labels", "score", ["label", "score"]]),
        "text": st.sampled_from(["text", "tokens", "id"]), "text_b": st.sampled_from(["text_b", "text"]), "choices": st.sampled_from(["choices", ["text", "id"]]),
        "labels": st.sampled_from([["red", "blue"], ["0", "1"], [0, 1, 2], ["O", "B-PER"]]), "split": st.sampled_from(["split", {"test": 0.5}, {"valid": 0.0}]),
        "limit": st.integers(1, 5), "tokens": st.just("tokens"), "weight": st.just(0.5), "max_length": st.integers(1, 300),
    },
)  # fmt: skip
cells = st.sampled_from(CELLS) | st.sampled_from(ODD_TEXTS) | texts
plain = st.dictionaries(
    st.sampled_from(COLUMNS), st.sampled_from(CELLS) | st.sampled_from(ODD_NUMBERS) | scalars | values, max_size=6
)
usual = st.fixed_dictionaries(
    {"text": st.sampled_from(CELLS), "label": st.sampled_from(["red", "blue", 1, 2, 0.5, ["red"], None])}
)


@_soak.fuzz(50)
@given(rows=st.lists(usual | usual | plain, min_size=1, max_size=12), spec=specs)
def test_rows_of_odd_values(tmp_path_factory, rows, spec):
    text = "\n".join(json.dumps(row) for row in rows)  # half characters are escaped, as JSON may have them
    told(home(tmp_path_factory), text.encode(), spec)
    told(home(tmp_path_factory), json.dumps(rows).encode(), spec, ".json")


@_soak.fuzz(50)
@given(table=st.lists(st.lists(cells, min_size=1, max_size=6), min_size=1, max_size=12), header=st.permutations(COLUMNS), spec=specs, ending=st.sampled_from([".csv", ".tsv"]),
       quoted=st.booleans())  # fmt: skip
def test_tables_of_odd_cells(tmp_path_factory, table, header, spec, ending, quoted):
    comma, width = "," if ending == ".csv" else "\t", len(table[0])

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if quoted else text

    lines = [comma.join(header[:width]), *(comma.join(map(cell, row)) for row in table)]
    told(home(tmp_path_factory), "\n".join(lines).encode("utf-8", "surrogatepass"), spec, ending)


GOOD = {
    kind: "".join(json.dumps(row) + "\n" for row in tiny.rows(kind, 12)).encode() for kind in tiny.KINDS if kind != "retrieve"
}
GOOD_CSV = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in tiny.rows("classify", 12))


@_soak.fuzz(50)
@given(data=st.data(), kind=st.sampled_from(sorted(GOOD)))
def test_files_that_came_to_harm(tmp_path_factory, data, kind):
    place = home(tmp_path_factory)
    if data.draw(st.booleans()):
        told(place, data.draw(harmed(GOOD[kind])), data.draw(specs) if data.draw(st.booleans()) else {})
    else:
        told(place, data.draw(harmed(GOOD_CSV.encode())), {}, data.draw(st.sampled_from([".csv", ".tsv", ".jsonl", ".json"])))
    if data.draw(st.booleans()):
        told(place, data.draw(harmed(gzip.compress(GOOD[kind], mtime=0))), {}, ".jsonl.gz")


def home(factory: Any) -> Path:
    """One folder for all examples."""
    place = Path(factory.getbasetemp()) / "rows"
    place.mkdir(exist_ok=True)
    return place


@_soak.fuzz(50)
@given(meta=altered({"kind": "classify", "labels": tiny.COLOURS, "metric": "accuracy", "max_length": 16, "targets": None, "description": "x",
                     "train": "train.jsonl", "split": "as it came", "multilabel": False}) | values)  # fmt: skip
def test_task_json_that_says_odd_things(tmp_path_factory, meta):
    place = home(tmp_path_factory) / "task"
    if not place.exists():
        tiny.folder(place, "classify", {"train": 12, "test": 6})
    (place / "task.json").write_text(json.dumps(meta))
    with _soak.within():
        try:
            load_task("t", TaskSpec(data=str(place)))
        except (InputError, WorkError) as error:
            assert str(error).startswith("task t: ")


@pytest.mark.parametrize("name", ["9" * 300, "/" + "a" * 5000, "b" * 300 + ".jsonl", "c/" * 200 + "d" * 300])
@pytest.mark.parametrize("key", ["data", "train"])
def test_a_name_that_no_file_can_have(tmp_path, key, name):
    tiny.folder(tmp_path / "task", "classify", {"train": 12, "test": 6})
    with pytest.raises((InputError, WorkError), match="^task t: "):
        load_task("t", TaskSpec(**{"data": str(tmp_path / "task")} | {key: name}))
    with pytest.raises((InputError, WorkError)):
        read_plan({"tasks": {"t": {"data": name}}}) and load_task("t", TaskSpec(data=name))
    with pytest.raises((InputError, WorkError)):
        read_plan(name)


@pytest.mark.parametrize("text", ["[" * 5000, '{"max_length": ' + "9" * 5000 + "}"])
def test_a_task_json_that_python_cannot_hold(tmp_path, text):
    tiny.folder(tmp_path / "task", "classify", {"train": 12, "test": 6})
    (tmp_path / "task" / "task.json").write_text(text)
    with pytest.raises(InputError, match="task.json.*broken JSON"):
        load_task("t", TaskSpec(data=str(tmp_path / "task")))


@pytest.mark.parametrize(("rows", "spec"), [
    ([{"text": "a", "choices": ["x", "y"], "label": "9" * 5000}], {"kind": "choice"}),
    ([{"text": "a", "label": "²"}, {"text": "b", "label": "³"}], {"kind": "classify", "labels": [0, 1]}),
    ([{"text": "a", "choices": ["x", "y"], "label": "²"}], {"kind": "choice"}),
    ([{"text": "a", "label": 10**400}, {"text": "b", "label": 1}], {"kind": "regress"}),
    ([{"text": "a", "label": "9" * 5000}, {"text": "b", "label": "8" * 5000}] * 9, {}),
    ([{"text": "a", "label": "9" * 5000}, {"text": "b", "label": "x"}] * 9, {"labels": ["x", "y"], "kind": "classify"}),
    ([{"text": "a", "label": {"b": 1}}, {"text": "b", "label": [[]]}] * 9, {}),
    ([{"text": {"a": 1}, "label": 1}, {"text": ["b"], "label": 2}] * 9, {}),
    ([{"text": "a" * 10**6, "label": i % 2} for i in range(8)], {}),
    ([{str(i): i for i in range(3000)} | {"text": "a", "label": i % 2} for i in range(8)], {}),
    ([{"tokens": [], "label": []}, {"tokens": ["a"] * 10**4, "label": ["O"] * 10**4}] * 5, {"kind": "tag"}),
])  # fmt: skip
def test_rows_that_once_did_harm_somewhere(tmp_path, rows, spec):
    told(tmp_path, "\n".join(map(json.dumps, rows)).encode(), spec)


def test_reading_rows_keeps_no_memory(tmp_path):
    rng, files = random.Random(0), []
    for kind, data in GOOD.items():
        for _ in range(4):
            at = rng.randrange(len(data))
            files.append((kind, data[:at] + rng.choice([b"", b"\xff", b"[", b'"']) + data[at + rng.randrange(5) :]))
    _soak.flat(lambda i: told(tmp_path, files[i % len(files)][1], {"kind": files[i % len(files)][0]}), 60)


# ---- rows that a model answers


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    return load(made.bundle(tmp_path_factory.mktemp("rows") / "run", {kind: kind for kind in tiny.HEADED}))


ASKED = [b"".join(json.dumps(row).encode() + b"\n" for row in made.ROWS[kind][:3]) for kind in tiny.HEADED]
asks = st.lists(
    st.dictionaries(st.sampled_from(["text", "text_b", "tokens", "choices", "x"]), st.just("red cat") | st.lists(texts, max_size=4) | values, max_size=4),
    min_size=1, max_size=4,
)  # fmt: skip


@_soak.fuzz(50)
@given(lines=st.sampled_from(ASKED).flatmap(harmed) | asks.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
       task=st.sampled_from(["all", *tiny.HEADED]))  # fmt: skip
def test_every_line_has_its_answer_or_its_error(model, lines, task):
    given = lines.split(b"\n")
    with _soak.within():
        found = list(cli.answered(model, task, given))
    assert [number for number, _ in found] == list(range(1, len(given) + 1))
    for _, answer in found:
        assert isinstance(answer, InputError) or json.dumps(answer, allow_nan=False)


def test_answering_keeps_no_memory(model):
    rng = random.Random(0)

    def ask(i: int) -> None:
        text = " ".join(rng.choices(tiny.WORDS[4:], k=rng.randint(0, 60)))
        task = ("classify", "tag", "all")[i % 3]
        model.predict(task, [{"text": text, "text_b": text, "tokens": text.split() or ["a"]}])
        with pytest.raises(InputError):
            model.predict("pair", [{"text": text}])

    _soak.flat(ask, 20, 5000, room=30e6)
