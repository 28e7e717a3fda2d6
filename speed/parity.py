"""The same numbers as the peers': merges of eight fine-tuned models on disk, ours beside mergekit's and FusionBench's.

    python speed/parity.py [--mergekit PYTHON] [--fusion PYTHON] [--methods mean,ties,...] [--out [FILE]]

Eight text tasks tune all of MiniLM in fp32, its embeddings and norms too: 300 rows each (a tenth held out), two passes of AdamW
under a frozen head made of the labels' names; kept in the user's cache. Base and models are written as Hugging Face folders.
``anabranch.engine.checkpoint.merge_folders`` merges them, and each peer does in a process of its own environment
(tests/merge/record.py), DARE with our random masks in the place of its own. Compared are all tensors that are not whole numbers.

TIES: mergekit keeps a share of each tensor, FusionBench of the whole model; ours is run as each of them defines it.
difference: the largest of one number. largest change: what the merge adds to one number of the base, for scale. apart: numbers
that differ by more than 1e-5; of the others: their largest difference. Two things set single numbers apart: threshold, several
changes are exactly as large as the last that TIES keeps, of which ours keeps all and mergekit so many as make up the share;
even, what stays of the models adds up to 0 but for rounding, which then elects the sign.

--mergekit, --fusion: pythons of environments with mergekit (`make speed` installs it: .venv-peers/mergekit) and with
fusion-bench; where one is absent, the other is compared with, and --out writes nothing.
--crops: cuts tests/merge/recorded_crops.safetensors from the models and ends. Skips without the tasks (ANABRANCH_DATA, --data).
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import _bench as bench

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "speed" / "parity.json"
sys.path.insert(0, str(ROOT / "tests" / "merge"))
record: Any = import_module("record")  # what peers run, in their environments too
ROWS, TEST, PASSES, BATCH, RATE, SHARP, LENGTH = 300, 200, 2, 12, 2e-4, 10.0, 48
PEERS = {"mergekit": ("mergekit", "mergekit"), "fusion": ("fusion_bench", "fusion-bench")}  # its module and package
WHY = ("apart", "at_threshold", "even")
METHODS = ["mean", "task_arithmetic", "ties", "dare", "dare_ties"]
NEAR = 1e-5
EDGE = {"d": 16, "inner": 24, "words": 48, "places": 12}  # of the crops, and the first and the last block


def tuned(data: Path, seed: int = 0) -> tuple[Any, dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """f, {task: all its tensors after tuning}, {task: accuracy on test rows of f and of the tuned model}."""
    from anabranch.engine.backbone import load
    from anabranch.engine.cache import cache_dir, digest, recall, write_tensors
    from anabranch.engine.lab import Lab

    b, states, scores = load("minilm"), {}, {}
    for task in Lab(seed, data).tasks(8, rows=ROWS, test=TEST):
        facts = (task.name, task.train.text, task.train.label, seed, PASSES, BATCH, RATE, SHARP, LENGTH, b.fingerprint)
        path = cache_dir() / "lab-parity" / f"{task.name}-{digest(*facts)}.safetensors"
        if not (kept := recall(path)):
            state, note = tune(b, task, seed)
            write_tensors(path, state, note)
            kept = state, note
            bench.told(f"{task.name}: accuracy {note['f']:.3f} of f, {note['tuned']:.3f} tuned")
        states[task.name], scores[task.name] = kept[0], {k: round(v, 4) for k, v in kept[1].items()}
    return b, states, scores


def tune(b: Any, task: Any, seed: int) -> tuple[dict[str, Any], dict[str, float]]:
    import torch
    from torch.nn.functional import cross_entropy, normalize

    from anabranch.engine.job import spelled

    f, rows = copy.deepcopy(b.f), list(range(len(task.train)))

    def vectors(texts: list[str]) -> Any:
        inputs = b.inputs([t.ids for t in b.tokens(texts, LENGTH)])
        return b.pooled(f(**inputs).last_hidden_state, inputs["attention_mask"])

    @torch.no_grad()
    def accuracy() -> float:
        split = task.test
        parts = [vectors(split.text[i : i + 50]) @ head.T for i in range(0, len(split), 50)]
        return float((torch.cat(parts).argmax(1) == torch.tensor(split.label)).float().mean())

    with torch.no_grad():
        names = vectors(spelled(task.labels))
        head = SHARP * normalize(names - names.mean(0), dim=1)
    before, optimiser = accuracy(), torch.optim.AdamW(f.parameters(), lr=RATE, weight_decay=0.0)
    for epoch in range(PASSES):
        order = bench.sample(rows, len(rows), seed + epoch)
        for at in range(0, len(order), BATCH):
            some = order[at : at + BATCH]
            texts, labels = ([column[i] for i in some] for column in (task.train.text, task.train.label))
            loss = cross_entropy(vectors(texts) @ head.T, torch.tensor(labels))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return f.state_dict(), {"f": before, "tuned": accuracy()}


def folders(where: Path, b: Any, states: dict[str, dict[str, Any]]) -> list[Path]:
    """base, m0, m1 ..., without the pooler, which nothing here runs."""
    from safetensors.torch import save_file

    from anabranch.engine.cache import read_json

    # mergekit 0.1.5 stops at its own definition of a BertModel (it adds a tuple to a list); what it does not know it takes
    # as it is, if names begin with bert.
    config = read_json(Path(b.folder) / "config.json") | {"architectures": record.BERT["architectures"]}
    for name, state in {"base": b.f.state_dict(), **{f"m{j}": s for j, s in enumerate(states.values())}}.items():
        (where / name).mkdir()
        save_file({f"bert.{n}": t for n, t in state.items()}, where / name / "model.safetensors", metadata={"format": "pt"})
        (where / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return [where / "base", *record.models_in(where)]


def crop(b: Any, states: dict[str, dict[str, Any]], out: Path) -> None:
    """What small parts of these changed: the first dimensions, of words half of those that changed most and half others."""
    import torch
    from safetensors.torch import save_file

    def cut(name: str, t: Any) -> Any:
        t = t[places[name]] if name in places else t
        sizes = [EDGE["inner"] if n == 4 * b.d else EDGE["d"] if n == b.d else n for n in t.shape]
        return t[tuple(map(slice, sizes))]

    base, word = b.f.state_dict(), "embeddings.word_embeddings.weight"
    moved = sum((s[word] - base[word]).norm(dim=1) for s in states.values())
    half = EDGE["words"] // 2
    places = {word: torch.cat([moved.argsort(descending=True)[:half], torch.arange(2000, 2000 + half)]),
              "embeddings.position_embeddings.weight": slice(EDGE["places"])}  # fmt: skip
    blocks = {"encoder.layer.0.": "encoder.layer.0.", f"encoder.layer.{b.blocks - 1}.": "encoder.layer.1."}
    names = {n: n for n in base if n.startswith("embeddings.")}
    names |= {n: to + n.removeprefix(of) for of, to in blocks.items() for n in base if n.startswith(of)}
    save_file({to: torch.stack([cut(n, s[n] - base[n]) for s in states.values()]).contiguous() for n, to in names.items()}, out)
    bench.told(f"{out}: {out.stat().st_size} bytes")


def ours(where: Path, made: list[Path], method: str, spec: Any, edge: Any) -> Path:
    """Merges the folders. ``edge``: of TIES over the whole model."""
    from anabranch.core.names import make
    from anabranch.engine.checkpoint import merge_folders, stream

    if edge is None:
        out = where / f"ours.{method}"
        return out if out.exists() else Path(merge_folders(made[0], made[1:], spec, out)["out"])
    whole, ties = {"threshold": edge}, make("merge", {"ties": {}})
    return Path(stream(made[0], made[1:], lambda rows, place, _: ties(rows, place, whole), where / "ours.whole")["out"])


def thresholds(made: list[Path]) -> Any:
    """[t]: the magnitude from which FusionBench keeps numbers of the whole model."""
    import torch

    from anabranch.merge._parts import ranked

    base, found = record.state_of(made[0]), []
    for folder in made[1:]:
        state = record.state_of(folder)
        d = torch.cat([(state[n] - t).flatten() for n, t in base.items()])[None]
        found.append(ranked(d, int(record.DENSITY * d.shape[1]) + 1)[0][0, 0])
    return torch.stack(found)


def compared(made: list[Path], merged: Path, change: Path, method: str, edge: Any) -> dict[str, Any]:
    """How far ours, a folder, is from theirs, a file of each tensor's change; and why single numbers are apart."""
    from safetensors.torch import load_file

    base, got, theirs = record.state_of(made[0]), record.state_of(merged), load_file(change)
    assert base.keys() == got.keys() == theirs.keys(), sorted(base.keys() ^ theirs.keys())
    models = [record.state_of(m) for m in made[1:]] if method in ("ties", "dare_ties") else []
    out = {"tensors": len(base), "numbers": 0, "difference": 0.0, "near": 0.0, "change": 0.0} | dict.fromkeys(WHY, 0)
    for name, t in base.items():
        far = (got[name] - t - theirs[name]).abs().flatten()
        apart = far > NEAR
        out["numbers"] += t.numel()
        out["difference"] = max(out["difference"], float(far.max()))
        out["near"] = max(out["near"], float((far * ~apart).max()))
        out["change"] = max(out["change"], float(theirs[name].abs().max()))
        out["apart"] += int(apart.sum())
        if models and apart.any():
            equal, even = why(name, [(m[name] - t).flatten() for m in models], method, edge)
            out["at_threshold"] += int((apart & equal).sum())
            out["even"] += int((apart & even & ~equal).sum())
    return out


def why(name: str, rows: list[Any], method: str, edge: Any) -> tuple[Any, Any]:
    """[n], [n] bool: where the change of some model is as large as the last one that is kept, and not alone in this; where
    what stays of the models adds up to nothing but rounding, so that either sign may be elected."""
    import torch

    from anabranch.merge._parts import keep, ranked

    equal, total, size = torch.zeros_like(rows[0], dtype=torch.bool), torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
    for j, d in enumerate(rows):
        if method == "ties":
            last = ranked(d[None], keep(record.DENSITY, d.numel()))[0][0, 0] if edge is None else edge[j]
            same = d.abs() == last
            equal |= same & (same.sum() > 1)
            d = d * (d.abs() >= last)
        else:
            d = d * (record.draw(name, j, d.shape) < record.KEPT)
        total += d
        size += d.abs()
    return equal, total.abs() <= 1e-6 * size


def version_of(python: Path, module: str, package: str) -> str:
    """Empty where the environment lacks it."""
    code = f"import {module}; from importlib.metadata import version; print(version({package!r}))"
    run = subprocess.run([str(python), "-c", code], capture_output=True, text=True) if python.is_file() else None
    return run.stdout.split()[-1] if run and not run.returncode else ""


def main() -> None:
    ask = bench.arguments(__doc__, data=True)
    for peer, (_, package) in PEERS.items():
        python = ROOT / ".venv-peers" / package / "bin" / "python"
        ask.add_argument(f"--{peer}", type=Path, default=python, metavar="PYTHON", help=f"of an environment with {package}")
    ask.add_argument("--methods", type=lambda text: text.split(","), default=METHODS)
    ask.add_argument("--out", type=Path, nargs="?", const=OUT, help="a JSON file for the result, without a name docs/speed/...")
    ask.add_argument("--crops", action="store_true", help="cuts the small models of the tests")
    a = ask.parse_args()
    from anabranch.engine.lab import CORE

    bench.present(a.data, CORE[:8])
    versions = {peer: version_of(getattr(a, peer), *names) for peer, names in PEERS.items()}
    absent = [PEERS[peer][1] for peer, version in versions.items() if not version]
    if len(absent) == len(PEERS) and not a.crops:
        print("skipped: no peer to compare with; give --mergekit PYTHON and --fusion PYTHON")
        return
    facts = bench.machine("transformers")
    b, states, scores = tuned(a.data)
    if a.crops:
        crop(b, states, record.CROPS)
        return
    rows, found = list[list[Any]](), dict[str, Any]()
    with tempfile.TemporaryDirectory() as place:
        where = Path(place)
        made = folders(where, b, states)
        for peer in [peer for peer, version in versions.items() if version]:
            cases = {m: record.CASES[f"{peer}.{m}"] for m in a.methods if f"{peer}.{m}" in record.CASES}
            if peer == "fusion" and "ties" in a.methods:
                cases["ties"] = {"ties": {}}
            command = [str(getattr(a, peer)), record.__file__, peer, str(where), ",".join(cases)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{peer} failed:\n{done.stderr[-3000:]}")
            found[peer] = {"version": versions[peer], "methods": {}}
            for method, spec in cases.items():
                edge = thresholds(made) if (peer, method) == ("fusion", "ties") else None
                change = where / f"{peer}.{method}.safetensors"
                one = compared(made, ours(where, made, method, spec, edge), change, method, edge)
                found[peer]["methods"][method] = one
                rows.append([f"{method}, {peer}", *one.values()])
                bench.told(f"{method}, {peer}: {one}")
    head = ["method, peer", "tensors", "numbers", "difference", "of the others", "largest change", "apart", "threshold", "even"]
    bench.table(head, rows)
    facts = {"machine": facts, "load_after": os.getloadavg()[0], "backbone": b.id, "dtype": "float32", "rows": ROWS,
             "passes": PASSES, "near": NEAR, "density": record.DENSITY, "scale": record.SCALE, "scores": scores,
             "found": found}  # fmt: skip
    if a.out and absent:
        bench.told(f"not written to {a.out}: {' and '.join(absent)} is absent")
    elif a.out:
        a.out.write_text(json.dumps({"what": "parity"} | facts) + "\n", encoding="utf-8")
    bench.emit("parity", **facts)


if __name__ == "__main__":
    main()
