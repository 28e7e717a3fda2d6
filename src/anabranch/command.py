"""What every command of the command line shares: --json, --threads, --device, exit codes, progress, output.

Exit codes: 0 good; 2 the request or an input is wrong; 1 the work failed (disk, permission, damaged bundle); 130 interrupted.
What goes wrong is one line on stderr; ANABRANCH_TRACEBACK=1 adds the traceback.
"""

import functools
import inspect
import io
import json as jsonlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from anabranch.errors import InputError, WorkError

COMMON = {
    "json": (bool, False, typer.Option("--json", help="JSON on stdout instead of tables.")),
    "threads": (int | None, None, typer.Option(min=1, help="CPU threads; all cores unless told.")),
    "device": (str, "cpu", typer.Option(help="cpu, or cuda where there is one.")),
}

Told = Callable[[str, int, int, str], None]
Work = Callable[..., Any]


def command(on: typer.Typer, name: str | None = None) -> Callable[[Work], Work]:
    """Makes a function a command of ``on``, or what ``on`` does by itself (name ""). The function gets those of COMMON that
    it names, returns None or (data, renderable), and raises: the exit code and the one line on stderr are made here."""

    def add(work: Work) -> Work:
        own = inspect.signature(work).parameters
        kind = inspect.Parameter.KEYWORD_ONLY
        common = [inspect.Parameter(n, kind, default=d, annotation=Annotated[t, o]) for n, (t, d, o) in COMMON.items()]
        whole = [*(p for n, p in own.items() if n not in COMMON), *common]

        @functools.wraps(work)
        def call(**given: Any) -> None:
            with answerable(str(given.get("out") or given.get("run") or "")):
                if given["threads"]:
                    use_threads(given["threads"])
                present(given["device"])
                found = work(**{n: given[n] for n in own})
                if found is not None:
                    data, shown = found
                    put(jsonlib.dumps(data, ensure_ascii=False, allow_nan=False) if given["json"] else drawn(shown))
                    if isinstance(data, dict) and data.get("ok") is False:  # a check that found something
                        raise typer.Exit(2)

        call.__signature__ = inspect.Signature(whole)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in whole}
        (on.callback(invoke_without_command=True) if name == "" else on.command(name))(call)
        return work

    return add


@contextmanager
def answerable(where: str) -> Iterator[None]:
    """What may go wrong, as one line and an exit code. ``where``: the folder that is worked on."""
    from pydantic_core import ValidationError

    try:
        yield
        return
    except (typer.Exit, BrokenPipeError):  # a reader that went away (| head) is no error: typer ends quietly
        raise
    except KeyboardInterrupt as stop:
        code, words = 130, f"stopped{stop}"
    except InputError as error:
        code, words = 2, f"error: {error}"
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r:.60}" for e in error.errors()]
        code, words = 2, f"error: {'; '.join(found)}"
    except WorkError as error:
        code, words = 1, f"error: {error}"
    except OSError as error:
        place = error.filename or where
        code, words = 1, f"error: {error.strerror or error}" + (f": {place}" if place else "")
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        code, words = 1, f"error: {type(error).__name__}: {first} (to see where: ANABRANCH_TRACEBACK=1 anabranch ...)"
    if os.environ.get("ANABRANCH_TRACEBACK") == "1":
        traceback.print_exc()
    sys.stderr.write(f"{words}\n")
    raise typer.Exit(code)


@contextmanager
def resumable(*words: Any) -> Iterator[None]:
    """An interrupt inside says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; go on with: {shlex.join(['anabranch', *map(str, words)])}") from None


@contextmanager
def progress(json: bool) -> Iterator[Told | None]:
    """``told(stage, done, of, text)`` that draws a bar per stage on stderr; None where nobody looks."""
    if json or not sys.stderr.isatty():
        yield None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description:10}", markup=False), bars.BarColumn(), bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(), bars.TextColumn("{task.fields[text]}", markup=False),
    )  # fmt: skip
    with bars.Progress(*columns, console=Console(stderr=True)) as shown:
        rows: dict[str, bars.TaskID] = {}

        def told(stage: str, done: int, of: int, text: str) -> None:
            if stage not in rows:
                for before in shown.tasks:
                    shown.update(before.id, completed=before.total, text="")
                rows[stage] = shown.add_task(stage, text=text)
            shown.update(rows[stage], completed=done, total=of, text=text)

        yield told


def use_threads(n: int) -> None:
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(n))
    if torch := sys.modules.get("torch"):  # too late for the environment
        torch.set_num_threads(n)


def present(device: str) -> None:
    """Raises InputError unless this machine has the device."""
    if device == "cpu":
        return
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdigit() or device == kind):
        raise InputError(f"device is cpu, cuda or cuda:NUMBER, got {device!r}")
    import torch

    if int(number or 0) >= torch.cuda.device_count():
        raise InputError(f"no device {device!r}: torch sees {torch.cuda.device_count()} CUDA devices here; use --device cpu")


def drawn(shown: Any) -> str:
    """A renderable as text, in colour where stdout takes it, and wide where no terminal sets the width."""
    if isinstance(shown, str):
        return shown
    tty = sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=tty, width=None if tty or "COLUMNS" in os.environ else 120)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]


def put(text: str) -> None:
    try:
        sys.stdout.write(text.removesuffix("\n") + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - else Python fails once more, at its exit
        raise WorkError(f"stdout cannot be written: {error.strerror}") from None
