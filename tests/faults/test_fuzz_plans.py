"""Plans of every sort: read, or refused in words. Never another error, never a hang, never memory that stays."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from engine import _tiny as tiny
from faults import _soak
from faults._strategies import altered, harmed, values
from hypothesis import given
from hypothesis import strategies as st

from anabranch.errors import InputError, WorkError
from anabranch.task.data import check_data
from anabranch.task.plan import Plan, read_plan, write_plan

TEXT = """\
backbone: minilm
seed: 3
tasks:
  intent: {data: data/classify, limit: 20, description: "what is wanted"}
  urgency:
    data: data/regress/train.jsonl
    text: text
    label: label
    kind: regress
    split: {test: 0.2, valid: 0.1}
  match: {train: data/pair/train.jsonl, test: data/pair/test.jsonl, text_b: text_b, kind: pair, labels: [same, other], weight: 2.5}
  find: {data: data/retrieve, corpus: data/retrieve/corpus.jsonl, max_length: 16, metric: recall@5}
delta: [{prompt: {tokens: 4, lr: 0.3}}, {lora: {rank: 4}, at: [attention.query, attention.value]}]
gate: by_task
balance: mean
stages: [look, features, probe, delta, choose]
budget: {minutes: 10, kilobytes_per_task: 200}
strict: false
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The folder of data that the plan names, and room for its file."""
    made = tmp_path_factory.mktemp("plans")
    for kind in ("classify", "regress", "pair", "retrieve"):
        tiny.folder(made / "data" / kind, kind, {"train": 20, "valid": 6, "test": 6})
    return made


def read(place: Path, text: bytes) -> Plan | None:
    """The plan, or None where it is refused in words."""
    path = place / "plan.yaml"
    path.write_bytes(text)
    with _soak.within():
        try:
            return read_plan(path)
        except (InputError, WorkError) as error:
            assert str(error).strip() and len(str(error)) < 20_000
            return None


def test_the_plan_is_a_good_one(place):
    plan = read(place, TEXT.encode())
    assert plan is not None and list(plan.tasks) == ["intent", "urgency", "match", "find"]
    assert check_data(place / "plan.yaml")["ok"]


@_soak.fuzz(60)
@given(text=harmed(TEXT.encode()) | st.binary(max_size=60))
def test_plans_that_came_to_harm(place, text):
    if read(place, text) is not None:
        check_data(place / "plan.yaml")


@_soak.fuzz(60)
@given(plan=altered(yaml.safe_load(TEXT)) | values)
def test_plans_that_say_odd_things(place, plan):
    if read(place, yaml.safe_dump(plan).encode("utf-8", "surrogatepass")) is not None:
        check_data(place / "plan.yaml")
    if isinstance(plan, dict):
        with _soak.within():
            try:
                assert isinstance(read_plan(plan), Plan)
            except (InputError, WorkError) as error:
                assert str(error).strip()


@_soak.fuzz(50)
@given(more=altered({"delta": [{"lora": {"rank": 4}, "at": "attention.query", "lr": 0.1}], "gate": "by_task", "balance": "mean", "stages": None,
                     "budget": {"minutes": 1, "kilobytes_per_task": 100}, "seed": 1}))  # fmt: skip
def test_plans_that_are_read_may_still_ask_for_what_cannot_be(place, more):
    """``fit --dry`` goes through all that is settled before the first step."""
    plan = {"backbone": str(tiny.home() / "bert"), "tasks": {"a": {"data": str(place / "data" / "classify")}}} | more
    with _soak.within():
        try:
            assert set(tiny.fit(plan, place / "run", dry=True)["tasks"]) == {"a"}
        except (InputError, WorkError) as error:
            assert str(error).strip()
    assert not (place / "run").exists()


# ---- what once did harm elsewhere


def bomb(levels: int) -> str:
    """A few lines that are 10^levels values once every alias is followed."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels))]) + "\n"


@pytest.mark.parametrize("text", [
    bomb(9), bomb(9) + "tasks: *a8\n", bomb(9) + "tasks: {a: {data: *a8}}\n", bomb(9) + "tasks: {a: {data: x, labels: *a8}}\n",
    bomb(9) + "tasks: {a: {data: x}}\ndelta: *a8\n", bomb(9) + "tasks: {a: {data: x}}\ndelta: {lora: *a8}\n",
    "- &a [*a]\n", "&a {tasks: *a}\n", "tasks: &a {x: *a}\n", "&a [*a, *a]\n", "tasks: {a: {data: x}}\ndelta: &a [*a]\n",
    "tasks: {a: {data: x}}\ndelta: &a {lora: *a}\n", "tasks: {a: {data: x}}\ndelta: {lora: {rank: &a [*a]}}\n",
    "? [1, 2]\n: x\n", "? {a: b}\n: x\n", "<<: [1]\n", "!!python/object/apply:os.system ['true']\n",
    "!!set {a, b}\n", "!!binary aGk=\n", "tasks: !!omap [a: 1]\n","tasks: {a: {data: !!binary /w==}}\n", "2026-02-30\n", "tasks: {2026-02-03: {data: x}}\n",
    "tasks: {a: {data: x, limit: 0o7, weight: .inf}}\n", "--- a\n--- b\n", "[" * 3000, "{a: " * 3000, "a: " * 3000, "- " * 3000, "%TAG ! x\n--- !a b\n",
    "seed: " + "9" * 5000 + "\n", "seed: 1:2:3:4:5:6\n", "tasks: {a: {data: x}}\nseed: 0x" + "f" * 5000 + "\n", "'" + "x" * 10**6, "\ufeff\ufeff", "\x85",
], ids=range(36))  # fmt: skip
def test_plans_that_are_made_to_hurt_are_refused(place, text):
    with _soak.within(10):
        assert read(place, text.encode("utf-8", "surrogatepass")) is None


def test_a_plan_runs_no_code(place, tmp_path):
    mark = tmp_path / "ran"
    for tag in (
        "!!python/object/apply:pathlib.Path.touch",
        "!!python/object/new:os.system",
        "!!python/name:os.system",
        "!!python/module:os",
    ):
        assert read(place, f"tasks: {{a: {{data: {tag} ['{mark}']}}}}\n".encode()) is None
    assert not mark.exists()


def test_reading_plans_keeps_no_memory(place):
    rng, texts = random.Random(0), [TEXT.encode()]
    for _ in range(20):
        at = rng.randrange(len(TEXT))
        texts.append((TEXT[:at] + rng.choice(["", "\0", "[", "&a ", "é"]) + TEXT[at + rng.randrange(9) :]).encode())
    _soak.flat(lambda i: read(place, texts[i % len(texts)]), 60)


def test_a_plan_that_is_written_for_any_folder_is_yaml():
    """Whatever files are called."""
    with tempfile.TemporaryDirectory() as temp:
        for name in ("a b", "é", "null", "yes", "3", "x: y", "- z", "#c", "'", '"', "{", "&a", "*b", "!t", "%d", "@e", "`f"):
            tiny.folder(Path(temp) / name, "classify", {"train": 12})
        said: Any = yaml.safe_load(write_plan(Path(temp)))
        assert len(said["tasks"]) == 17 and json.dumps(said)
