"""Runs what measures speed, one script after another, and keeps the JSON line that each prints last in docs/speed/.

    python speed/run.py [NAME ...] [--full] [--peers .venv-peers] [--out docs/speed]

Settings are such that all of it ends in under 40 minutes on two cores, installing apart; --full: the scripts' own, for hours.
Peers of peers.txt are installed, each into an environment of its own, PEERS/NAME; one that does not install is told of, here
and in the result, whose versions show null for it, and the other numbers are measured without it. A script that fails leaves
its old result, the others go on, and the exit code is 1. docs/speed/README.md is made of the results by: make docs
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _bench as bench

HERE = Path(__file__).resolve().parent
SHORT = {
    "fit": "--rows 240 --test 240 --seeds 0,1,2,3,4",
    "fewshot": "--seeds 0",
    "mixed": "--slots 1,64,1000 --reps 10",
    "merge": "--millions 32 --methods task_arithmetic,ties,dare_ties",
    "balance": "--reps 7",
    "serve": "--seconds 4 --reps 5",
    "load": "",
    "scale": "--tasks 1,64,512 --rows 4096 --memory-rows 300",
}
PEERS = {"merge": ("mergekit", "--peer"), "fewshot": ("setfit", "--peer"), "balance": ("LibMTL", "--libmtl")}


def listed() -> dict[str, list[str]]:
    """peers.txt: name -> words for pip."""
    lines = [line.partition(":") for line in (HERE / "peers.txt").read_text(encoding="utf-8").splitlines() if line[:1] not in "#"]
    return {name.strip(): words.split() for name, _, words in lines}


def installed(name: str, words: list[str], place: Path) -> str:
    """The version of a peer in its environment, which is made where it is not there yet. RuntimeError when that fails."""
    python, torch = place / "bin" / "python", f"torch=={(bench.versioned('torch') or '').partition('+')[0]}"
    steps = [[sys.executable, "-m", "venv", str(place)]] if not python.exists() else []
    steps += [
        [str(python), "-m", "pip", "install", "-q", *part] for part in ([] if "--no-deps" in words else [[torch]]) + [words]
    ]
    ask = [str(python), "-c", f"from importlib.metadata import version; print(version({name!r}))"]
    stamp = place / "peers.txt"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != " ".join(words):
        bench.told(f"installing {name} into {place}")
        for step in steps:
            run = subprocess.run(step, capture_output=True, text=True)
            if run.returncode:
                raise RuntimeError((run.stderr.strip() or run.stdout.strip() or "no reason given").splitlines()[-1])
        stamp.write_text(" ".join(words), encoding="utf-8")
    return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()


def given(name: str, place: Path) -> str:
    """What a script is told of its peer: its python, or the folder of its packages."""
    return str(place / "bin" / "python" if PEERS[name][1] == "--peer" else next((place / "lib").glob("python*/site-packages")))


def measured(name: str, words: list[str]) -> dict[str, Any]:
    """Shows what a script prints, and gives its last line. RuntimeError when it fails or has nothing to tell."""
    command, last = [sys.executable, str(HERE / f"{name}.py"), *words], ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout
        for line in process.stdout:
            last = line
            print(line, end="", flush=True)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}")
    try:
        return dict(json.loads(last, parse_constant=lambda _: None))  # the deviation of one number is NaN, and that no JSON
    except ValueError:
        raise RuntimeError(last.strip() or "it printed nothing") from None


def main() -> None:
    ask = bench.arguments(__doc__)
    ask.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHORT)}; all of them unless told")
    ask.add_argument("--full", action="store_true", help="the scripts' own settings")
    ask.add_argument("--peers", type=Path, default=HERE.parent / ".venv-peers", help="a folder of environments")
    ask.add_argument("--out", type=Path, default=HERE.parent / "docs" / "speed")
    a = ask.parse_args()
    if odd := set(a.names) - set(SHORT):
        ask.error(f"no script {', '.join(sorted(odd))}; there are {', '.join(SHORT)}")
    names, peers, said = a.names or list(SHORT), dict[str, str | None](), list[list[Any]]()
    for peer, words in listed().items():
        if peer in [PEERS[name][0] for name in names if name in PEERS]:
            try:
                peers[peer] = installed(peer, words, a.peers / peer)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                peers[peer] = None
                bench.told(f"NOT INSTALLED: {peer}: {error}")
                said.append([f"peer {peer}", "not installed", str(error)])
    a.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in names:
        settings = [] if a.full else SHORT[name].split()
        peer, option = PEERS.get(name, ("", ""))
        beside = [option, given(name, a.peers / peer)] if peers.get(peer) else []
        bench.told(" ".join(["speed/" + name + ".py", *settings]))
        begun = time.perf_counter()
        try:
            found = measured(name, [*settings, *beside])
        except RuntimeError as error:
            failed |= not str(error).startswith("skipped")  # where its data is absent
            said.append([name, f"{(time.perf_counter() - begun) / 60:.1f} min", f"no result: {error}"])
            continue
        found["settings"], found["seconds_in_all"] = settings, round(time.perf_counter() - begun)
        found["machine"]["versions"] |= {peer: peers[peer]} if peer else {}
        (a.out / f"{name}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
        said.append([name, f"{found['seconds_in_all'] / 60:.1f} min", f"{name}.json"])
    print()
    bench.table(["", "", ""], said)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
