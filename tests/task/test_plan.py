"""The plan: read from YAML, a folder, a file or a dict; wrong words come back with file, line and the nearest name."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import anabranch.merge
from anabranch.core import names
from anabranch.errors import InputError
from anabranch.task.plan import ALIASES, KINDS, STAGES, Plan, TaskSpec, kind_of, read_plan, write_plan

ROWS = "text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(40))


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "tickets.csv").write_text(ROWS)
    (tmp_path / "intent").mkdir()
    (tmp_path / "intent" / "train.csv").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(here: Path, text: str, *words: str, line: int | None = None, column: int | None = None) -> None:
    """A plan of this text fails with all of ``words``, at the line and column, in a message that names the file."""
    (here / "plan.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_plan(here / "plan.yaml")
    message = str(caught.value)
    assert message.startswith("plan.yaml"), message
    assert (caught.value.line, caught.value.column) == (line, column), message
    for word in (*words, *([f"line {line}"] if line else [])):
        assert word in message, message


def test_the_plan_of_the_design(here):
    (here / "plan.yaml").write_text("""
backbone: minilm
tasks:
  intent:  {data: intent}
  urgency: {data: tickets.csv, text: body, label: hours, kind: regression, limit: 500}
  match:   {data: pairs.parquet, text: a, text_b: b, label: same, kind: pair-classify, split: {test: 0.3}}
  vad:     {train: vad.csv, test: ~/vad.csv, label: [valence, arousal], labels: [1, 2.5, "3"], weight: 2}
budget: {minutes: 10, kilobytes_per_task: 200}
strict: true
""")
    plan = read_plan(here / "plan.yaml")
    assert list(plan.tasks) == ["intent", "urgency", "match", "vad"]
    assert plan.tasks["intent"] == TaskSpec(data=str(here / "intent"))
    assert plan.tasks["urgency"].kind == "regress" and plan.tasks["urgency"].limit == 500
    assert plan.tasks["match"].data == str(here / "pairs.parquet") and plan.tasks["match"].split == {"test": 0.3}
    assert plan.tasks["vad"].labels == [1, 2.5, "3"] and plan.tasks["vad"].label == ["valence", "arousal"]
    assert plan.tasks["vad"].train == str(here / "vad.csv") and plan.tasks["vad"].test == str(Path.home() / "vad.csv")
    assert (plan.budget.minutes, plan.budget.kilobytes_per_task, plan.strict) == (10, 200, True)
    assert (plan.seed, plan.delta, plan.gate) == (0, "lora", "by_task")
    assert (plan.merge, plan.balance, plan.stages) == (None, None, None)
    assert read_plan(plan) is plan and read_plan(plan.model_dump()) == plan


def test_paths_start_at_the_plan(here, monkeypatch):
    (here / "plan.yaml").write_text("backbone: intent\ntasks: {a: {data: tickets.csv}, b: {data: owner/name}}")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    plan = read_plan("../plan.yaml")
    assert Path(plan.tasks["a"].data).samefile(here / "tickets.csv") and Path(plan.backbone).samefile(here / "intent")
    assert plan.tasks["b"].data == "owner/name"  # may be on the hub
    monkeypatch.chdir(here)
    assert read_plan({"tasks": {"a": {"data": Path("tickets.csv")}}}).tasks["a"].data == str(here / "tickets.csv")


def test_folders_and_files_are_plans(here):
    (here / "notes.txt").write_text("not a task")
    (here / "empty").mkdir()
    assert {name: spec.data for name, spec in read_plan(here).tasks.items()} == {
        "intent": str(here / "intent"),
        "tickets": str(here / "tickets.csv"),
    }
    assert read_plan(Path("intent")).tasks == {"intent": TaskSpec(data=str(here / "intent"))}
    assert read_plan("tickets.csv").tasks == {"tickets": TaskSpec(data=str(here / "tickets.csv"))}
    with pytest.raises(InputError, match="^empty: no tasks; expected folders that hold train.jsonl"):
        read_plan(here / "empty")
    with pytest.raises(InputError, match="^nowhere.csv: no such file or folder"):
        read_plan("nowhere.csv")
    (here / "tickets.jsonl").write_text('{"text": "x", "label": 1}\n')
    with pytest.raises(InputError, match="two tasks of the name 'tickets': rename tickets.jsonl"):
        read_plan(here)


def test_missing_plan_names_the_nearest(here):
    (here / "plan.yaml").write_text("tasks: {}")
    with pytest.raises(InputError, match="^plan.yml: no such file; did you mean plan.yaml?"):
        read_plan("plan.yml")


def test_broken_yaml(here):
    fails(here, "backbone: minilm\ntasks:\n  a: {data: x\n  b: {data: y}\n", "broken YAML", line=4, column=4)
    fails(here, "tasks:\n\ta: {data: x}\n", "broken YAML: found character '\\t'", line=2, column=1)
    fails(here, "tasks: \x07", "broken YAML: unacceptable character")
    fails(here, "tasks: " + "[" * 5_000, "broken YAML")
    fails(here, "- a\n- b\n", "expected lines of key: value", line=1)
    (here / "plan.yaml").write_bytes(b"# caf\xe9\ntasks: {}")
    with pytest.raises(InputError, match="plan.yaml, line 1: expected UTF-8, got byte 0xe9 at offset 5"):
        read_plan("plan.yaml")


def test_duplicate_names(here):
    text = "tasks:\n  intent: {data: intent}\n  tickets: {data: tickets.csv}\n  intent: {data: tickets.csv}\n"
    fails(here, text, "task 'intent' is there twice, first on line 2: rename one", line=4)
    fails(here, "seed: 1\ntasks: {a: {data: x}}\nseed: 2\n", "key 'seed' is there twice, first on line 1", line=3)


@pytest.mark.parametrize("text", ["tasks: {}\n", "tasks:\n", "backbone: minilm\n"])
def test_no_tasks(here, text):
    fails(here, text, "no tasks; expected tasks: {NAME: {data: FILE or FOLDER}}")


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("tasks: {a: {data: x}}\nbackbon: minilm", 2, "backbon: unknown key; did you mean backbone?"),
        ("tasks:\n  a:\n    data: x\n    lable: y", 4, "tasks.a.lable: unknown key; did you mean label or labels?"),
        ("tasks: {a: {data: x}}\nbudget: {minute: 5}", 2, "budget.minute: unknown key; did you mean minutes?"),
        ("tasks:\n  a: {data: x, kind: clasify}", 2, "tasks.a.kind: no kind 'clasify'; did you mean classify"),
        ("tasks:\n  a: {data: x, kind: zzz}", 2, "no kind 'zzz'; choose from choice, classify, generate"),
        ("tasks: {a: {data: x}}\nbackbone: 7", 2, "backbone: expected a valid string, got 7"),
        ("tasks:\n  a: data/banking77", 2, "tasks.a: expected {key: value}, got 'data/banking77'"),
        ("tasks: [a, b]", 1, "tasks: expected {key: value}, got ['a', 'b']"),
        ("tasks:\n  a: {text: body}", 2, "tasks.a: expected a source: data: FILE or FOLDER"),
        ("tasks:\n  a: {data: x, limit: 0}", 2, "tasks.a.limit: expected greater than or equal to 1, got 0"),
        ("tasks:\n  a: {data: x, weight: .inf}", 2, "tasks.a.weight: expected a finite number, got inf"),
        (
            "tasks:\n  a: {data: x, label: 5}",
            2,
            "tasks.a.label: expected a valid string or expected a valid list, got 5",
        ),
        (
            "tasks:\n  a: {data: x, labels: [yes, no]}",
            2,
            "which is how YAML reads yes, no, on and off: quote the names",
        ),
        ("tasks:\n  a: {data: x, labels: [b, c, b]}", 2, "labels names 'b' twice"),
        ("tasks:\n  a: {data: x, split: {tset: 0.2}}", 2, "or {test: 0.2, valid: 0.1}, got the key 'tset'"),
        ("tasks:\n  a: {data: x, split: {test: 20}}", 2, "tasks.a.split.test: expected less than 1, got 20"),
        ("tasks:\n  all: {data: x}", 2, "'all' cannot name a task"),
        ("tasks:\n  a/b: {data: x}", 2, "'a/b' cannot name a task: use letters, digits"),
        ("tasks: {a: {data: x}}\nstages: [look, prob]", 2, "stages: no stage 'prob'; did you mean probe?"),
        ("tasks: {a: {data: x}}\nmerge: teis", 2, "merge: no merge 'teis'; did you mean ties?"),
        ("tasks: {a: {data: x}}\nmerge: {ties: {density: 20}}", 2, "merge ties: density is a number in (0, 1], got 20"),
        ("tasks: {a: {data: x}}\nmerge: {ties: {densty: 0.2}}", 2, "no setting 'densty'; did you mean density?"),
        (
            "tasks: {a: {data: x}}\nmerge: []",
            2,
            "merge: a merge is a name or {name: {setting: value}}, got []",
        ),
        ("tasks: {a: {data: x}}\ndelta: []", 2, "delta is an empty list"),
        ("tasks: {a: {data: x}}\ndelta: [{ties: {}, at: 5}]", 2, "at is a site or a list of sites"),
        ("tasks: {a: {data: x}}\ndelta: [{ties: {lr: -1}}]", 2, "lr is a number above 0, got -1"),
        ("tasks: {a: {data: x}}\nseed: one\nstrict: perhaps", 2, "perhaps"),
    ],
)
def test_wrong_words(here, family, text, line, words):
    fails(here, text, words, line=line)


@pytest.fixture
def family(tmp_path, monkeypatch):
    """The families merge and delta with one method, ties, so that these tests do not move with the real ones."""
    package = tmp_path / "methods"
    package.mkdir()
    (package / "ties.py").write_text(
        "from anabranch.types import Share\n\n\ndef ties(rows, *, density: Share = 0.2):\n    return rows\n"
    )
    for name in ("merge", "delta"):
        monkeypatch.setattr(getattr(anabranch, name), "__path__", [str(package)])
        monkeypatch.delitem(sys.modules, f"anabranch.{name}.ties", raising=False)
    yield
    for name in ("merge", "delta"):
        sys.modules.pop(f"anabranch.{name}.ties", None)
        vars(getattr(anabranch, name)).pop("ties", None)


def test_methods(here, family):
    def delta(spec):
        return read_plan({"tasks": {"a": {"data": "x"}}, "delta": spec}).delta

    assert delta("ties") == "ties" and delta({"ties": {"density": 0.5}}) == {"ties": {"density": 0.5}}
    assert delta({"ties": None}) == {"ties": None}
    assert delta(["ties", {"ties": {"density": 0.5}, "at": "attention.query", "lr": 0.3}]) == [
        "ties",
        {"ties": {"density": 0.5}, "at": "attention.query", "lr": 0.3},
    ]
    # at and lr may be written among the settings, and an entry that has them is always in a list
    assert delta({"ties": {"density": 0.5, "lr": 0.3}}) == [{"ties": {"density": 0.5}, "lr": 0.3}]
    assert delta(delta({"ties": {"at": ["mlp.out"]}})) == [{"ties": {}, "at": ["mlp.out"]}]


def test_every_real_method_may_be_named():
    for family in ("delta", "gate", "merge", "balance"):
        for name in names.every(family):
            Plan.model_validate({"tasks": {"a": {"data": "x"}}, family: name.replace("_", "-")})


def test_all_that_is_wrong_is_told_at_once(here):
    text = "tasks:\n  a: {data: x, kindd: tag}\n  b: {data: y, limit: -1}\nsede: 3\n"
    fails(here, text, "line 2: tasks.a.kindd", "\nplan.yaml, line 3: tasks.b.limit", "\nplan.yaml, line 4: sede", line=2)


def test_dicts_are_told_without_a_file():
    with pytest.raises(InputError, match="^tasks.a.lable: unknown key; did you mean"):
        read_plan({"tasks": {"a": {"data": "x", "lable": "y"}}})


def test_kinds_and_aliases():
    assert list(KINDS) == ["classify", "multilabel", "regress", "tag", "pair", "choice", "retrieve", "generate"]
    assert [kind_of(word) for word in ("pair-classify", "Multiple_Choice", "regression", "NER", "tagging")] == [
        "pair", "choice", "regress", "tag", "tag",
    ]  # fmt: skip
    assert all(kind_of(alias) == kind for alias, kind in ALIASES.items())
    assert set(STAGES) == {"look", "features", "probe", "relate", "delta", "share", "choose"}


def test_written_plans_are_read_again(here):
    (here / "odd name.csv").write_text("body,title,label\nx,y,a\n")
    text = write_plan(Path("."))
    assert "# classify of 2 labels; rows: 29 train, 3 valid, 8 test" in text
    assert "# TO DO: task odd name: odd name.csv, line 1: body, title could each be the text: type text: body" in text
    (here / "plan.yaml").write_text(text)
    plan = read_plan("plan.yaml")
    assert {name: Path(spec.data).name for name, spec in plan.tasks.items()} == {
        "intent": "intent", "odd name": "odd name.csv", "tickets": "tickets.csv",
    }  # fmt: skip
    for key in ("budget", "stages", "strict"):
        text = text.replace(f"# {key}:", f"{key}:")
    uncommented = yaml.safe_load(text)
    assert Plan.model_validate(uncommented).stages == list(STAGES) and uncommented["budget"]["minutes"] == 10
    assert set(TaskSpec.model_fields) <= set(text.replace(",", " ").split())


def test_plans_and_data_need_no_torch():
    heavy = ("torch", "datasets", "pyarrow", "numpy")
    code = f"import sys, anabranch.task.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
