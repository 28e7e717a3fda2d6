"""The command line: ``anabranch COMMAND``. Arguments come from signatures; nothing heavy is imported before it is needed."""

import json as jsonlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.console import Group

from anabranch.command import command, progress, put, resumable
from anabranch.errors import InputError, nearest
from anabranch.report import table

BATCH = 1024  # lines of stdin that are answered together
QUESTIONS = (
    "sort an array along an axis",
    "fit a line to points by least squares",
    "compute the shortest path between two nodes of a graph",
)

Run = Annotated[Path, typer.Argument(help="The folder that fit made, or its bundle.")]
Out = Annotated[Path, typer.Option(help="The folder to write.")]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (YAML), a folder of data, or a data file.")]
OnError = Annotated[Literal["stop", "skip"], typer.Option(help="At a wrong row: stop, or count it and go on.")]

app = typer.Typer(
    name="anabranch", help="Adapt ONE pretrained backbone to MANY tasks, in one bundle.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
data_app = typer.Typer(help="Look at data before anything is fitted.", no_args_is_help=True)
atlas_app, cache_app = typer.Typer(), typer.Typer()
for name, child in (("data", data_app), ("atlas", atlas_app), ("cache", cache_app)):
    app.add_typer(child, name=name)


def main(args: list[str] | None = None) -> None:
    for stream in (sys.stdout, sys.stderr):  # JSON lines are UTF-8 everywhere; an odd file name must not end in a traceback
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    app(args, prog_name="anabranch")


@command(app)
def init(folder: Annotated[Path, typer.Argument(help="A task folder, a data file, or a folder of these.")]) -> Any:
    """Write a plan for the data in FOLDER to stdout."""
    from anabranch.task.plan import write_plan

    text = write_plan(folder)
    return yaml.safe_load(text), text


@command(app)
def fit(
    plan: PlanFile, out: Out,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where a run is.")] = False,
    dry: Annotated[bool, typer.Option("--dry", help="Say rows, minutes and megabytes, and write nothing.")] = False,
    on_error: OnError = "stop", *, json: bool, device: str,
) -> Any:  # fmt: skip
    """Fit every task of a plan into one bundle, OUT/bundle."""
    from anabranch.task.plan import read_plan

    if resume and overwrite:
        raise InputError("--resume goes on and --overwrite starts anew: give one of them")
    checked = read_plan(plan)  # before anything heavy is imported
    more = [*(["--on-error", on_error] if on_error != "stop" else []), *(["--device", device] if device != "cpu" else [])]
    with resumable("fit", plan, "--out", out, "--resume", *more), progress(json) as told:
        from anabranch.engine.fit import fit

        found = fit(checked, out, resume=resume, overwrite=overwrite, dry=dry, on_error=on_error, device=device, told=told)
    return found, table.dry(found) if dry else table.run(found, out)


@command(app)
def evaluate(
    run: Run, data: Annotated[Path, typer.Option(help="A folder of task folders.")], on_error: OnError = "stop", *, device: str
) -> Any:
    """Score a bundle on the test rows of task folders."""
    from anabranch.engine.model import load

    found = load(run, device).evaluate(data, on_error)
    return found, table.evaluated(found)


@command(app)
def predict(
    run: Run, task: Annotated[str, typer.Option(help="A task, or all.")], on_error: OnError = "stop", *, device: str
) -> None:
    """Answer rows: JSON lines on stdin, one answer a line on stdout, in the same order."""
    from anabranch.engine.model import load

    model = load(run, device)
    if task != "all" and task not in model.tasks:
        raise InputError(f"no task {task!r} in {run}{nearest(task, [*model.tasks, 'all'])}")
    wrong = 0
    for number, answer in answered(model, task, sys.stdin.buffer):
        if isinstance(answer, InputError):
            wrong += 1
            answer = {"error": f"stdin, line {number}: {answer}"}
            if on_error == "stop":
                raise InputError(answer["error"])
        put(jsonlib.dumps(answer, ensure_ascii=False))
    if wrong:
        sys.stderr.write(f"wrong lines, skipped: {wrong}\n")


def answered(model: Any, task: str, lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """(line, answer or InputError) of every line, in order."""
    numbered = enumerate(lines, 1)
    while batch := list(islice(numbered, BATCH)):
        rows = [row_of(line, number) for number, line in batch]
        found = iter(each(model, task, [row for row in rows if not isinstance(row, InputError)]))
        for (number, _), row in zip(batch, rows, strict=True):
            yield number, row if isinstance(row, InputError) else next(found)


def row_of(line: bytes, number: int) -> dict[str, Any] | InputError:
    try:
        row = jsonlib.loads(line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8"))
        jsonlib.dumps(row, ensure_ascii=False).encode()  # half of a character, "\ud800": no tokenizer takes it
    except jsonlib.JSONDecodeError as error:
        return InputError(f"broken JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return InputError(f"broken JSON: {error}")
    if isinstance(row, dict):
        return row
    return InputError(f'expected an object such as {{"text": "..."}}, got {jsonlib.dumps(row)[:60]}')


def each(model: Any, task: str, rows: list[dict[str, Any]]) -> list[Any]:
    """An answer or InputError for each row. A wrong row makes the model refuse its batch: halves find it."""
    try:
        return model.predict(task, rows) if rows else []
    except InputError as error:
        if len(rows) == 1:
            return [InputError(str(error).removeprefix("row 1: "))]
        half = len(rows) // 2
        return each(model, task, rows[:half]) + each(model, task, rows[half:])


@command(app)
def add(run: Run, plan: PlanFile, on_error: OnError = "stop", *, json: bool) -> Any:
    """Add the tasks of a plan to a bundle; not one bit of its other tasks changes."""
    from anabranch.task.plan import read_plan

    checked = read_plan(plan)
    more = ["--on-error", on_error] if on_error != "stop" else []
    with resumable("add", run, plan, *more), progress(json) as told:
        from anabranch.engine.change import add

        found = add(run, checked, on_error=on_error, told=told)
    return found, table.changed(found)


@command(app)
def remove(run: Run, task: str) -> Any:
    """Remove a task from a bundle."""
    from anabranch.engine.change import remove

    found = remove(run, task)
    return found, table.changed(found)


@command(app)
def merge(
    run: Annotated[Path, typer.Argument(help="What fit made; or a base model's folder; or a mergekit file, .yml or .yaml.")],
    merge: Annotated[str | None, typer.Option(help="A merge, such as ties or 'ties: {density: 0.3}'.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Of a RUN: tasks, as a,b,c; all unless told.")] = None,
    name: Annotated[str, typer.Option(help="Of a RUN: what the merged delta is called.")] = "merged",
    models: Annotated[str | None, typer.Option(help="Of a base model: folders fine-tuned from it, as a,b,c.")] = None,
    out: Annotated[Path | None, typer.Option(help="Of a base model or a mergekit file: the folder to write.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of what goes to --out; the base's unless told.")] = None,
    *, json: bool,
) -> Any:  # fmt: skip
    """Merge the deltas of tasks into one that serves them all, and score it beside each task's own; or whole models."""
    from anabranch.task.plan import method

    file = run.suffix in (".yml", ".yaml")
    whole = file or models is not None or (run / "config.json").is_file()
    if whole and (tasks is not None or name != "merged"):
        raise InputError("--tasks and --name are of a RUN; whole models have neither")
    if not whole and (out or dtype):
        raise InputError(f"--{'out' if out else 'dtype'} is of merges of whole models; a RUN's goes to RUN/NAME")
    if file and (merge or models is not None):
        raise InputError(f"{run.name} itself says what is merged and how: leave out --{'merge' if merge else 'models'}")
    if whole and not file and models is None:
        raise InputError(f"{run} is a model; with which others is it to be merged? Give --models A,B")
    if whole and not out:
        raise InputError("a merge of whole models is written to a new folder: give --out")
    if not file and not merge:
        raise InputError("no --merge given: a merge is a name such as ties, or 'NAME: {setting: value}'")
    try:
        spec = yaml.safe_load(merge or "")
    except yaml.YAMLError:
        raise InputError(f"--merge is a name or 'NAME: {{setting: value}}', got {merge!r}") from None
    if not file:
        method("merge", spec)
    with progress(json) as told:
        if out:
            from anabranch.engine import checkpoint, mergekit

            folders = [Path(m) for m in several("models", models)]
            found = (mergekit.merge_yaml(run, out, dtype=dtype, told=told) if file else
                     checkpoint.merge_folders(run, folders, spec, out, dtype=dtype, told=told))  # fmt: skip
            return found, table.facts(found)
        from anabranch.engine.change import merge as merged

        found = merged(run, spec, tasks=several("tasks", tasks) or None, name=name, told=told)
    return found, table.merged(found)


def several(option: str, text: str | None) -> list[str]:
    """What an option lists as a,b,c; none where it is not given."""
    listed = [] if text is None else [one.strip() for one in text.split(",")]
    if not all(listed):
        raise InputError(f"--{option} is a list such as a,b,c; a name in {text!r} is empty")
    return listed


@command(app)
def export(
    run: Run, task: str, out: Out,
    merged: Annotated[bool, typer.Option("--merged", help="A plain Hugging Face checkpoint (the default).")] = False,
    peft: Annotated[bool, typer.Option("--peft", help="An adapter for the peft package.")] = False,
) -> Any:  # fmt: skip
    """Write one task for other programs."""
    if merged and peft:
        raise InputError("--merged and --peft are two forms: give one of them")
    from anabranch.engine.change import export

    found = export(run, task, out, "peft" if peft else "merged")
    return found, table.facts(found)


@command(app)
def serve(
    run: Run,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="127.0.0.1: this machine only; 0.0.0.0: all that reach it.")] = "127.0.0.1",
    token_file: Annotated[Path | None, typer.Option(help="It holds the token of requests; else ANABRANCH_TOKEN.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a request, at most.")] = 1024,
    queue: Annotated[int, typer.Option(min=1, help="Answers that may wait; more are refused for a while.")] = 16_384,
    wait: Annotated[float, typer.Option(min=0, help="Milliseconds that a row waits for others to share a pass.")] = 2.0,
    connections: Annotated[int, typer.Option(min=1, help="At once.")] = 1000,
    *, json: bool,
) -> None:  # fmt: skip
    """Answer over HTTP: POST /v1/predict, tasks that come and go, /metrics, and all of it described at /docs."""
    try:
        from anabranch.serve import run as server
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs more packages ({error.name} is missing): pip install 'anabranch[serve]'") from None
    limits = server.Limits(rows=rows, queue=queue, wait=wait / 1000, connections=connections)
    server.serve(run, host, port, token=server.secret(token_file), limits=limits,
                 told=lambda facts: put(jsonlib.dumps(facts) if json else server.opening(facts)))  # fmt: skip


@command(app)
def report(run: Run) -> Any:
    """Show the results of a run, and write RUN/report.html."""
    from anabranch.report import html

    found = table.read(run)
    if "mean_merged" not in found:
        html.write(run)
    return found, table.run(found, run)


@command(app)
def demo(out: Out, seed: Annotated[int, typer.Option(help="Of data and training.")] = 0, *, json: bool, device: str) -> Any:
    """Fit eight tasks on the docstrings of the installed libraries, then find functions by English sentences."""
    with resumable("demo", "--out", out, "--seed", seed), progress(json) as told:
        from anabranch.engine.fit import fit
        from anabranch.engine.model import load
        from anabranch.world.docstrings import docstrings

        suite = out.absolute().with_name(f"{out.name}-data")
        tasks = {name: {"data": str(suite / name), "limit": 500} for name in docstrings(suite, seed=seed)["tasks"]}
        stages = ["look", "features", "probe", "relate", "delta", "choose"]  # a shared slot would take as long again
        plan = {"backbone": "minilm", "seed": seed, "tasks": tasks, "stages": stages, "budget": {"kilobytes_per_task": 320}}
        found = fit(plan, out, resume=True, device=device, told=told)
    answers = load(out, device).predict(["library", "area", "find"], [{"text": question} for question in QUESTIONS])
    replies = [reply(question, answer) for question, answer in zip(QUESTIONS, answers, strict=True)]
    return found | {"answers": replies}, Group(table.run(found, out), table.answers(replies))


def reply(question: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    functions = [document["id"] for document in answer["find"]["prediction"][:3]]
    return {"text": question} | {name: answer[name]["prediction"] for name in ("library", "area")} | {"functions": functions}


@command(data_app)
def check(plan: PlanFile) -> Any:
    """Read all data of a plan: counts, and every problem with its file, line and column. Exit code 2 if there is one."""
    from anabranch.task.data import check_data

    found = check_data(plan)
    return found, table.checked(found)


@command(atlas_app, "")
def atlas(context: typer.Context, *, json: bool) -> Any:
    """The catalogue of papers: what each does, how to use it here, and whether its claim held."""
    return None if context.invoked_subcommand else listed(json=json)


@command(atlas_app, "list")
def listed(*, json: bool) -> Any:
    """All families with their counts."""
    from anabranch.atlas.show import overview

    found = overview(json)
    return found, found


@command(atlas_app)
def show(id: str, *, json: bool) -> Any:
    """All that is known about a row."""
    from anabranch.atlas import show

    found = show.show(id, json)
    return found, found


@command(atlas_app)
def search(words: list[str], *, json: bool) -> Any:
    """The rows nearest in meaning to some words."""
    from anabranch.atlas.show import found

    rows = found(" ".join(words), json)
    return rows, rows


@command(app)
def claim(
    id: Annotated[str | None, typer.Argument(help="A row of the catalogue, see anabranch atlas.")] = None,
    family: Annotated[str | None, typer.Option(help="All claims of a family instead of one.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ...")] = 3,
    data: Annotated[Path | None, typer.Option(help="A folder of task folders; else docstrings.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; each takes one seed at a time.")] = 1,
    publish: Annotated[bool, typer.Option("--publish", help="Keep the verdict in the package, for a source checkout.")] = False,
    *, json: bool,
) -> Any:  # fmt: skip
    """Measure what a paper claims, here, and say whether it held. What is measured is kept: a killed claim goes on."""
    from anabranch.engine import claim as engine

    with resumable("claim", *([id] if id else ["--family", family]), "--seeds", seeds, *(["--data", data] if data else [])):
        found = []
        for name in engine.ids_of(id, family):
            found.append(engine.run(name, seeds, data, jobs, told=lambda text: typer.echo(text, err=True)))
            if publish:
                engine.publish(found[-1])
    return (found[0] if id else {"claims": found}), Group(*map(table.verdict, found))


@command(cache_app, "")
def cache(context: typer.Context) -> Any:
    """The user's cache: where it is and what it holds."""
    if context.invoked_subcommand:
        return None
    from anabranch.engine.cache import cache_dir

    sizes = [path.stat().st_size for path in cache_dir().rglob("*") if path.is_file()]
    found = {"folder": str(cache_dir()), "files": len(sizes), "megabytes": round(sum(sizes) / 1e6, 3)}
    return found, table.facts(found)


@command(cache_app)
def clear() -> Any:
    """Empty it."""
    from anabranch.engine.cache import cache_dir, clear

    found = {"folder": str(cache_dir()), "freed_megabytes": round(clear() / 1e6, 3)}
    return found, table.facts(found)


if __name__ == "__main__":
    main()
