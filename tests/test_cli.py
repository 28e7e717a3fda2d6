"""The command line hands over what was typed, answers in tables or JSON, and fails in one line with the right exit code.

The engine is replaced by fakes that record their arguments; the last test holds the fakes to the engine's signatures.
"""

import errno
import importlib
import inspect
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from anabranch import cli
from anabranch.cli import app, main
from anabranch.errors import InputError, WorkError
from anabranch.task.plan import Plan, read_plan

TASK = {
    "kind": "classify", "metric": "accuracy", "n_train": 9, "n_valid": 2, "n_test": 4, "majority": 0.5, "probe": 0.75,
    "delta": None, "shared": None, "chosen": "probe", "valid": 1.0, "test": 0.75, "kilobytes": 1.5, "seconds": 0.1,
}  # fmt: skip
RESULTS = {
    "format": 1, "seed": 0, "backbone": "minilm", "dtype": "float32", "seconds": 1.5, "stages": {"probe": 1.0},
    "tasks": {"tickets": TASK},
}  # fmt: skip
EXPECTED = {"rows": 15, "minutes": 0.2, "megabytes": 1.0, "tasks": {"tickets": {"train": 9}}, "stages": {"probe": 0.2}}
MERGED = {"tasks": {"a": {"single": 0.9, "merged": 0.8}}, "mean_single": 0.9, "mean_merged": 0.8, "kilobytes_saved": 10.0}


def run(*words: object) -> int:
    """The exit code of ``anabranch WORDS``."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    return end.value.code or 0


class Engine:
    """Stands where anabranch.engine and the docstring suite would be; ``calls`` has (name, positional, by name)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}
        self.tasks = {"intent": {}, "tone": {}}
        self.seen: list[list[dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            self.calls.append((name, args, named))
            answer = self.answers.get(name)
            if isinstance(answer, BaseException):
                raise answer
            return answer(*args, **named) if callable(answer) else answer

        return call

    def predict(self, task: str | list[str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Like the model: all rows or none."""
        wrong = next((i for i, row in enumerate(rows) if task != "all" and "text" not in row), None)
        if wrong is not None:
            raise InputError(f"row {wrong + 1}: task {task} needs 'text', a string")
        self.seen.append(rows)
        return [{"prediction": row.get("text", "").upper(), "scores": [1.0]} for row in rows]


@pytest.fixture
def engine(monkeypatch, tmp_path) -> Engine:
    fake = Engine()
    places = {
        "engine.fit": ["fit"], "engine.change": ["add", "remove", "merge", "export"],
        "world.docstrings": ["docstrings"],
    }  # fmt: skip
    for place, names in places.items():
        module = types.ModuleType(f"anabranch.{place}")
        vars(module).update({name: getattr(fake, name) for name in names})
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("cache_dir", "clear"):
        monkeypatch.setattr(f"anabranch.engine.cache.{name}", getattr(fake, name))
    model = types.ModuleType("anabranch.engine.model")
    model.load = lambda *args: fake.calls.append(("load", args, {})) or fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, model.__name__, model)
    monkeypatch.chdir(tmp_path)
    Path("tickets.csv").write_text("text,label\n" + "".join(f"words {i},{'xy'[i % 2]}\n" for i in range(40)))
    Path("plan.yaml").write_text("tasks: {tickets: {data: tickets.csv}}\n")
    fake.answers["fit"] = RESULTS
    return fake


@pytest.fixture
def stdin(monkeypatch):
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def commands(group: Any, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found = {} if not words or not hasattr(group, "commands") else {words: group}
    for name, child in getattr(group, "commands", {}).items():
        found |= commands(child, (*words, name))
    return found or {words: group}


def test_the_commands_are_those_of_the_design_and_all_have_the_common_options():
    found = commands(typer.main.get_command(app))
    names = {" ".join(words) for words in found}
    assert names == {
        "init", "fit", "evaluate", "predict", "add", "remove", "merge", "export", "serve", "report", "demo", "data", "data check",
        "atlas", "atlas list", "atlas show", "atlas search", "claim", "cache", "cache clear",
    }  # fmt: skip
    for words, one in found.items():
        options = {option for parameter in one.params for option in parameter.opts}
        assert one.help and (words == ("data",) or options >= {"--json", "--threads", "--device"}), words


@pytest.mark.parametrize(
    "words", [["--help"], ["fit", "-h"], ["atlas", "--json"], ["atlas", "show", "x"], ["data", "check", "."]]
)
def test_nothing_heavy_is_imported_for_a_listing(words: list[str]):
    code = f"import sys\nfrom anabranch.cli import main\ntry: main({words!r})\nfinally: sys.stderr.write('|'.join(sys.modules))"
    imported = set(python(code).stderr.split("|"))
    assert "anabranch.command" in imported and not imported & {"torch", "transformers", "sklearn", "datasets", "pyarrow"}


def python(code: str, **more: Any) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, **more)


# fit


def test_fit_hands_over_a_checked_plan(engine, capsys):
    assert run("fit", "plan.yaml", "--out", "out", "--json") == 0
    [(name, (plan, out), named)] = engine.calls
    assert name == "fit" and isinstance(plan, Plan) and list(plan.tasks) == ["tickets"] and out == Path("out")
    assert named == {"resume": False, "overwrite": False, "dry": False, "on_error": "stop", "device": "cpu", "told": None}
    assert json.loads(capsys.readouterr().out) == RESULTS


def test_fit_takes_a_folder_and_prints_a_table(engine, capsys):
    assert run("fit", ".", "--out", "out", "--resume", "--on-error", "skip") == 0
    assert engine.calls[0][2] | {"told": None} == {
        "resume": True, "overwrite": False, "dry": False, "on_error": "skip", "device": "cpu", "told": None,
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert "0.750*" in shown and "out/bundle" in shown and "anabranch report out" in shown


def test_fit_dry(engine, capsys):
    engine.answers["fit"] = EXPECTED
    assert run("fit", "plan.yaml", "--out", "out", "--dry") == 0
    assert engine.calls[0][2]["dry"] and "15 rows, about 0.2 minutes and 1.0 MB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan.yml"], "plan.yml: no such file; did you mean plan.yaml"),
        (["bad.yaml"], "bad.yaml, line 2: tasks.a.datta: unknown key; did you mean data?"),
        (["plan.yaml", "--resume", "--overwrite"], "give one of them"),
        (["plan.yaml", "--on-error", "sip"], "sip"),
        (["plan.yaml", "--threads", "0"], "threads"),
        (["plan.yaml", "--device", "gpu"], "device is cpu, cuda or cuda:NUMBER, got 'gpu'"),
        (["plan.yaml", "--device", "cuda:99"], "no device 'cuda:99'"),
        ([], "PLAN"),
    ],
)
def test_a_wrong_request_stops_before_the_engine(engine, capsys, words: list[str], said: str):
    Path("bad.yaml").write_text("tasks:\n  a: {datta: x.csv}\n")
    assert run("fit", *words, "--out", "out") == 2
    assert said in capsys.readouterr().err and not engine.calls and not Path("out").exists()


def test_fit_needs_a_place(engine, capsys):
    assert run("fit", "plan.yaml") == 2
    assert "--out" in capsys.readouterr().err


class Model(BaseModel):
    size: int


def invalid() -> Exception:
    try:
        Model(size="big")
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (InputError("density is a share in (0, 1], got 20"), 2, "error: density is a share in (0, 1], got 20\n"),
        (invalid(), 2, "error: size: Input should be a valid integer, unable to parse string as an integer, got 'big'\n"),
        (WorkError("x.safetensors is damaged"), 1, "error: x.safetensors is damaged\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device: out\n"),
        (PermissionError(errno.EACCES, "Permission denied", "out/work"), 1, "error: Permission denied: out/work\n"),
        (OSError("the hub is away"), 1, "error: the hub is away: out\n"),
        (KeyError("odd\nlines"), 1, "error: KeyError: 'odd\\nlines' (to see where: ANABRANCH_TRACEBACK=1 anabranch ...)\n"),
        (MemoryError(), 1, "error: MemoryError:  (to see where: ANABRANCH_TRACEBACK=1 anabranch ...)\n"),
        (KeyboardInterrupt(), 130, "stopped; go on with: anabranch fit plan.yaml --out out --resume\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_failure_is_one_line_with_its_code(engine, capsys, monkeypatch, problem: BaseException, code: int, said: str):
    engine.answers["fit"] = problem
    monkeypatch.delenv("ANABRANCH_TRACEBACK", raising=False)
    assert run("fit", "plan.yaml", "--out", "out") == code
    assert capsys.readouterr() == ("", said)
    monkeypatch.setenv("ANABRANCH_TRACEBACK", "1")
    assert run("fit", "plan.yaml", "--out", "out", "--json") == code
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):") and type(problem).__name__ in err and err.endswith(said)


def test_what_to_type_after_an_interrupt_keeps_the_options(engine, capsys):
    engine.answers["fit"] = KeyboardInterrupt()
    Path("a plan.yaml").write_text(Path("plan.yaml").read_text())
    assert run("fit", "a plan.yaml", "--out", "out", "--overwrite", "--on-error", "skip") == 130
    assert "anabranch fit 'a plan.yaml' --out out --resume --on-error skip\n" in capsys.readouterr().err


def test_a_real_interrupt_ends_with_130(engine):
    fake = "import os, signal, sys, types\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nm = types.ModuleType('anabranch.engine.fit')\n"
    fake += "m.fit = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT) or signal.pause()\nsys.modules[m.__name__] = m\n"
    done = python(fake + "from anabranch.cli import main\nmain(['fit', 'plan.yaml', '--out', 'out'])")
    assert (done.returncode, done.stderr) == (130, "stopped; go on with: anabranch fit plan.yaml --out out --resume\n")


def test_progress_is_drawn_for_a_terminal_alone(engine, capsys, monkeypatch):
    def fit(*args: Any, told: Any, **named: Any) -> Any:
        for stage, text in (("probe", "[intent]"), ("delta", "tone")):
            told(stage, 1, 2, text)
        return RESULTS

    engine.answers["fit"] = fit
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: self is sys.stderr, raising=False)
    assert run("fit", "plan.yaml", "--out", "out") == 0
    err = capsys.readouterr().err
    assert "probe" in err and "2/2" in err and "tone" in err and "1/2" in err  # a new stage completes the one before
    engine.answers["fit"] = RESULTS
    assert run("fit", "plan.yaml", "--out", "out", "--json") == 0
    assert engine.calls[-1][2]["told"] is None and capsys.readouterr().err == ""


def test_threads_reach_the_libraries(engine, monkeypatch):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "1")  # put back at the end
    torch = types.SimpleNamespace(set_num_threads=lambda n: engine.calls.append(("threads", (n,), {})))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert run("fit", "plan.yaml", "--out", "out", "--threads", 3) == 0
    assert engine.calls[0] == ("threads", (3,), {}) and [os.environ[name] for name in names] == ["3"] * 3


def test_a_device_that_is_here_is_used(engine, monkeypatch):
    cuda = types.SimpleNamespace(device_count=lambda: 2)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert run("fit", "plan.yaml", "--out", "out", "--device", "cuda:1") == 0
    assert engine.calls[0][2]["device"] == "cuda:1"
    engine.answers["fit"] = KeyboardInterrupt()
    assert run("fit", "plan.yaml", "--out", "out", "--device", "cuda:2") == 2


# predict


def lines(capsys) -> list[Any]:
    return [json.loads(one) for one in capsys.readouterr().out.split("\n")[:-1]]


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def test_predict_answers_every_line_in_order(engine, stdin, capsys, monkeypatch):
    monkeypatch.setattr(cli, "BATCH", 3)
    stdin("\ufeff".encode() + rows("a", "ü\u2028", "c", "d") + b'{"text": "no newline"}')
    assert run("predict", "out", "--task", "intent") == 0
    assert engine.calls == [("load", (Path("out"), "cpu"), {})]
    assert [answer["prediction"] for answer in lines(capsys)] == ["A", "Ü\u2028", "C", "D", "NO NEWLINE"]
    assert [len(batch) for batch in engine.seen] == [3, 2]


def test_predict_of_nothing_is_nothing(engine, stdin, capsys):
    stdin(b"")
    assert run("predict", "out", "--task", "all") == 0 and capsys.readouterr() == ("", "")


BAD = [
    (b'{"text": "b"', "stdin, line 3: broken JSON at column 13: Expecting ',' delimiter"),
    (b"", "stdin, line 3: broken JSON at column 1: Expecting value"),
    (b'"b"', 'stdin, line 3: expected an object such as {"text": "..."}, got "b"'),
    (b'{"words": "b"}', "stdin, line 3: task intent needs 'text', a string"),
    (b"\xff", "stdin, line 3: broken JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    (b'{"text": "\\ud800"}', "stdin, line 3: broken JSON: 'utf-8' codec can't encode character '\\ud800'"),
    (b"[" * 100_000, "stdin, line 3: broken JSON: "),
]


@pytest.mark.parametrize(("bad", "said"), BAD, ids=range(len(BAD)))
def test_a_bad_line_stops_with_its_number_after_the_answers_before_it(engine, stdin, capsys, bad: bytes, said: str):
    stdin(rows("a", "b") + bad + b"\n" + rows("d"))
    assert run("predict", "out", "--task", "intent") == 2
    out, err = capsys.readouterr()
    assert [json.loads(one)["prediction"] for one in out.splitlines()] == ["A", "B"]
    assert err.startswith(f"error: {said}") and err.count("\n") == 1


@pytest.mark.parametrize(("bad", "said"), BAD, ids=range(len(BAD)))
def test_a_bad_line_can_be_skipped(engine, stdin, capsys, bad: bytes, said: str):
    stdin(rows("a", "b") + bad + b"\n" + rows("d") + bad + b"\n" + rows("f"))
    assert run("predict", "out", "--task", "intent", "--on-error", "skip") == 0
    out, err = capsys.readouterr()
    answers = [json.loads(one) for one in out.splitlines()]
    assert [answer.get("prediction") for answer in answers] == ["A", "B", None, "D", None, "F"]
    assert answers[2]["error"].startswith(said) and answers[4]["error"].startswith(said.replace("line 3", "line 5"))
    assert err == "wrong lines, skipped: 2\n"
    assert sum(map(len, engine.seen)) == 4  # no row is computed twice


def test_predict_names_the_nearest_task(engine, stdin, capsys):
    stdin(rows("a"))
    assert run("predict", "out", "--task", "intnet") == 2
    assert capsys.readouterr().err.startswith("error: no task 'intnet' in out; did you mean intent")


def test_all_tasks_take_any_row(engine, stdin, capsys):
    stdin(b'{"tokens": ["a"]}\n' + rows("b"))
    assert run("predict", "out", "--task", "all") == 0 and len(lines(capsys)) == 2


# the other commands


def test_evaluate(engine, capsys):
    engine.answers["evaluate"] = {"a": {"metric": "mcc", "score": 0.5, "rows": 12}}
    assert run("evaluate", "out", "--data", "folder", "--on-error", "skip") == 0
    assert engine.calls == [("load", (Path("out"), "cpu"), {}), ("evaluate", (Path("folder"), "skip"), {})]
    assert "mcc" in capsys.readouterr().out


def test_add_and_remove(engine, capsys):
    engine.answers |= {"add": RESULTS, "remove": {"removed": "tickets"}}
    assert run("add", "out", "plan.yaml") == 0 and "0.750*" in capsys.readouterr().out
    assert run("remove", "out", "tickets", "--json") == 0 and json.loads(capsys.readouterr().out) == {"removed": "tickets"}
    (_, (where, plan), named), (_, gone, _) = engine.calls
    assert where == Path("out") and list(plan.tasks) == ["tickets"] and named == {"on_error": "stop", "told": None}
    assert gone == (Path("out"), "tickets")
    assert run("add", "out", "nothing") == 2 and len(engine.calls) == 2 and capsys.readouterr()
    engine.answers["add"] = KeyboardInterrupt()
    assert run("add", "out", "plan.yaml", "--on-error", "skip") == 130
    assert capsys.readouterr().err == "stopped; go on with: anabranch add out plan.yaml --on-error skip\n"


@pytest.mark.parametrize(
    ("words", "spec", "named"),
    [
        (["ties"], "ties", {"tasks": None, "name": "merged"}),
        (["ties: {density: 0.3}"], {"ties": {"density": 0.3}}, {"tasks": None, "name": "merged"}),
        (["task-arithmetic", "--tasks", "a, b", "--name", "ab"], "task-arithmetic", {"tasks": ["a", "b"], "name": "ab"}),
    ],
)
def test_merge(engine, capsys, words: list[str], spec: Any, named: dict[str, Any]):
    engine.answers["merge"] = MERGED
    assert run("merge", "out", "--merge", *words) == 0
    assert engine.calls == [("merge", (Path("out"), spec), named | {"told": None})]
    assert "-0.100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tis", "no merge 'tis'; did you mean ties"),
        ("ties: {density: 20}", "for 20 per cent pass 0.2"),
        ("ties: {dense: 0.2}", "did you mean density?"),
        ("ties: {", "--merge is a name or 'NAME: {setting: value}', got 'ties: {'"),
        ("", "a merge is a name"),
        ("3", "a merge is a name"),
    ],
)
def test_a_wrong_merge_stops_before_the_engine(engine, capsys, spec: str, said: str):
    assert run("merge", "out", "--merge", spec) == 2
    assert said in capsys.readouterr().err and not engine.calls


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "a,"], "--tasks is a list such as a,b,c; a name in 'a,' is empty"),
        (["--tasks", ""], "--tasks is a list such as a,b,c"),
        (["--models", "a,", "--out", "there"], "--models is a list such as a,b,c; a name in 'a,' is empty"),
        (["--models", "", "--out", "there"], "--models is a list such as a,b,c; a name in '' is empty"),
        (["--models", " , a", "--out", "there"], "--models is a list such as a,b,c"),
    ],
)
def test_a_list_with_an_empty_name_is_refused(engine, capsys, words: list[str], said: str):
    assert run("merge", "out", "--merge", "ties", *words) == 2
    assert said in capsys.readouterr().err and not engine.calls and not Path("there").exists()


def test_export(engine, capsys):
    engine.answers["export"] = {"folder": "there", "files": ["a", "b"]}
    for words, form in (([], "merged"), (["--merged"], "merged"), (["--peft"], "peft")):
        assert run("export", "out", "intent", "--out", "there", *words) == 0
        assert engine.calls.pop() == ("export", (Path("out"), "intent", Path("there"), form), {})
    assert "a, b" in capsys.readouterr().out
    assert run("export", "out", "intent", "--out", "there", "--peft", "--merged") == 2 and not engine.calls


def test_report(engine, capsys):
    assert run("report", "out") == 2 and "no results.json" in capsys.readouterr().err
    Path("out").mkdir()
    Path("out/results.json").write_text(json.dumps(RESULTS))
    assert run("report", "out", "--json") == 0 and json.loads(capsys.readouterr().out) == RESULTS
    assert run("report", "out") == 0 and "0.750*" in capsys.readouterr().out
    Path("out/results.json").write_text("{")
    assert run("report", "out") == 1 and "out/results.json is damaged" in capsys.readouterr().err


def test_init_writes_a_plan_that_can_be_read(engine, capsys):
    assert run("init", ".") == 0
    Path("made.yaml").write_text(capsys.readouterr().out)
    assert list(read_plan(Path("made.yaml")).tasks) == ["tickets"]
    assert run("init", ".", "--json") == 0
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(Path("made.yaml").read_text())
    assert run("init", "nowhere") == 2 and "nowhere: no such file or folder" in capsys.readouterr().err


def test_data_check_says_where_and_ends_with_2(engine, capsys):
    assert run("data", "check", "plan.yaml", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["tasks"]["tickets"]["kind"] == "classify" and found["tasks"]["tickets"]["duplicates"] == 0
    Path("tickets.csv").write_text("text,label\na,x\nb,y,z\n")
    assert run("data", "check", "plan.yaml", "--json") == 2
    [problem] = [p for p in json.loads(capsys.readouterr().out)["tasks"]["tickets"]["problems"] if p["line"] == 3]
    assert problem["file"] == "tickets.csv" and problem["message"].startswith("3 fields, the header has 2")
    assert run("data", "check", "plan.yaml") == 2 and "tickets.csv, line 3: 3 fields" in capsys.readouterr().out


def test_cache(engine, capsys, tmp_path):
    (tmp_path / "kept/deep").mkdir(parents=True)
    (tmp_path / "kept/deep/x").write_bytes(bytes(500_000))
    engine.answers |= {"cache_dir": tmp_path / "kept", "clear": 500_000}
    assert run("cache", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "kept"), "files": 1, "megabytes": 0.5}
    assert not [name for name, *_ in engine.calls if name == "clear"]
    assert run("cache", "clear", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "kept"), "freed_megabytes": 0.5}


def test_atlas(capsys):
    assert run("atlas", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["rows"]
    assert run("atlas", "list", "--json") == 0 and json.loads(capsys.readouterr().out)["rows"] == listed
    assert {"id", "n", "title", "family", "kind", "fidelity", "value", "status"} <= set(listed[0])
    assert run("atlas") == 0 and "family" in capsys.readouterr().out
    assert run("atlas", "show", listed[0]["id"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == listed[0]["id"]
    assert run("atlas", "show", listed[0]["id"][:-1]) == 2 and listed[0]["id"] in capsys.readouterr().err


def test_a_claim_and_the_mistakes_around_it(monkeypatch, capsys):
    found = {"id": "toy", "verdict": "held", "note": "A toy.", "seeds": [0], "cpu": [1.0], "data": "docstring suite", "test": "t",
             "comparisons": [{"claim": "a > b", "mean": 0.1, "interval": [0.05, 0.15], "pairs": 3, "verdict": "held"}],
             "numbers": {"a": {"mean": 0.6, "interval": [0.5, 0.7]}}}  # fmt: skip
    asked = []
    monkeypatch.setattr("anabranch.engine.claim.run", lambda *given, **_: asked.append(given) or found)
    assert run("claim", "task-arithmetic", "--seeds", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out) == found and asked[0][:3] == ("task-arithmetic", 2, None)
    assert run("claim", "--family", "merge") == 0
    assert "held" in capsys.readouterr().out and "task-arithmetic" in {given[0] for given in asked[1:]}
    for words, said in (
        (["task-aritmetic"], "did you mean task-arithmetic"),
        ([], "name a claim"),
        (["--family", "x"], "no claim in"),
    ):
        assert run("claim", *words) == 2
        assert said in capsys.readouterr().err


def test_atlas_search_takes_words_without_quotes(monkeypatch, capsys):
    from anabranch.atlas import show

    monkeypatch.setattr(show, "found", lambda words, json=False: {"words": words})
    assert run("atlas", "search", "merge", "without data", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"words": "merge without data"}


def test_demo_fits_the_suite_and_answers_three_sentences(engine, capsys, monkeypatch):
    said = {"library": {"prediction": "numpy"}, "area": {"prediction": "tables"}}
    said["find"] = {"prediction": [{"id": f"numpy.f{i}", "score": 0.5} for i in range(10)]}
    asked = []
    monkeypatch.setattr(Engine, "predict", lambda self, task, rows: asked.append((task, rows)) or [said] * len(rows))
    engine.answers["docstrings"] = {"tasks": {"library": {}, "area": {}, "find": {}}}
    assert run("demo", "--out", "out", "--seed", 3, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (suite, (folder,), seeded), (_, (plan, out), named), (_, loaded, _) = engine.calls
    assert (suite, folder, seeded) == ("docstrings", Path("out-data").absolute(), {"seed": 3})
    assert out == Path("out") and named == {"resume": True, "device": "cpu", "told": None} and loaded == (Path("out"), "cpu")
    checked = read_plan(plan)
    assert checked.seed == 3 and checked.backbone == "minilm" and checked.tasks["find"].data == str(folder.absolute() / "find")
    [(tasks, questions)] = asked
    assert tasks == ["library", "area", "find"] and len(questions) == 3
    first = {"library": "numpy", "area": "tables", "functions": ["numpy.f0", "numpy.f1", "numpy.f2"]}
    assert found["answers"] == [question | first for question in questions] and found["tasks"] == RESULTS["tasks"]
    assert run("demo", "--out", "out") == 0
    shown = capsys.readouterr().out
    assert "out/bundle" in shown and questions[2]["text"] in shown and "numpy.f0, numpy.f1, numpy.f2" in shown
    engine.answers["docstrings"] = KeyboardInterrupt()
    assert run("demo", "--out", "out") == 130
    assert capsys.readouterr().err == "stopped; go on with: anabranch demo --out out --seed 0\n"


# stdout


def test_a_reader_that_goes_away_is_no_error():
    code = "from anabranch.cli import main\nmain(['atlas', '--json'])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as child:
        assert child.stdout and child.stderr and child.stdout.read(1) == b"{"
        child.stdout.close()
        assert child.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("words", [["atlas"], ["atlas", "--json"]])
def test_a_full_disk_behind_stdout_is_said(words: list[str]):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = f"from anabranch.cli import main\nmain({words!r})"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=env, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: stdout cannot be written: No space left on device\n")


@pytest.mark.parametrize(
    ("module", "name", "positional", "named"),
    [
        ("fit", "fit", 2, ("resume", "overwrite", "dry", "on_error", "device", "told")),
        ("model", "load", 2, ()),
        ("model", "Model.predict", 3, ()),
        ("model", "Model.evaluate", 3, ()),
        ("change", "add", 2, ("on_error", "told")),
        ("change", "remove", 2, ()),
        ("change", "merge", 2, ("tasks", "name", "told")),
        ("change", "export", 4, ()),
        ("cache", "cache_dir", 0, ()),
        ("cache", "clear", 0, ()),
    ],
)
def test_the_engine_takes_what_the_command_line_hands_over(module: str, name: str, positional: int, named: tuple[str, ...]):
    found: Any = importlib.import_module(f"anabranch.engine.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    inspect.signature(found).bind(*range(positional), **dict.fromkeys(named))


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "anabranch", "predict", "no-such-run", "--task", "a"], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=60)  # fmt: skip
    assert done.returncode == 2 and "no-such-run is not a run or a bundle" in done.stderr and "Traceback" not in done.stderr
