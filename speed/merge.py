"""Merging checkpoints from disk to disk: anabranch beside mergekit, on the same random folders.

    python speed/merge.py [--peer PYTHON] [--millions 320] [--models 4] [--methods linear,task_arithmetic,ties,dare_ties]

Folders of a Llama's shape in bf16: a base, and models that differ from it by noise. Each method is one mergekit file, which
both run in a fresh process in turn, --reps times each; counted is the merge itself, not the imports, in GB/s of what is read,
and the memory behind no file that it takes at most on top of the imports. ``folder`` rows: our own method of the same name on
the same folders, as `anabranch merge BASE --models ...` runs it. ``ceiling``: GB/s of reading the same files and writing one
of them, and nothing else. We compute in fp32 and wait for the disk at the end, mergekit computes in bf16 and does not wait.
``differs``: |ours - theirs| / |theirs - base|; of fp32 folders (small ones, made for it, all of their tensors), and in bf16 of
one tensor of what was timed. In fp32 it is rounding. In bf16 TIES differs by about a tenth, for one reason: differences of bf16
have a few thousand values at most, and a hundredth of them lie exactly on the threshold, where we keep all equal numbers, as
the paper's code does, and mergekit so many as make up the share, whichever its sort brings first. What DARE drops is drawn at
random on each side: it differs as much as ours from ours with another seed, which stands beside it (``by seed``).
--peer: the python of an environment with mergekit (the same torch); without it only our own numbers are shown.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _bench as bench

OURS = """
import json, sys, time
import _bench
from anabranch.engine.checkpoint import merge_folders
from anabranch.engine.mergekit import merge_yaml
plan, out, folders, spec = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
before = _bench.anonymous()
with _bench.peak() as most:
    start = time.perf_counter()
    merge_folders(folders[0], folders[1:], spec, out) if spec else merge_yaml(plan, out)
    seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": most[0] - before}))
"""
THEIRS = """
import json, sys, time
import _bench
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
with open(sys.argv[1]) as file:
    plan = MergeConfiguration.model_validate(yaml.safe_load(file))
before = _bench.anonymous()
with _bench.peak() as most:
    start = time.perf_counter()
    run_merge(plan, sys.argv[2], options)
    seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": most[0] - before}))
"""
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {  # of a model, of the merge, of our folder
    "linear": ({"weight": 1.0}, {}, "mean"),
    "task_arithmetic": ({"weight": 0.4}, {}, {"task_arithmetic": {"scale": 0.4}}),
    "ties": ({"weight": 1.0, "density": 0.2}, {}, {"ties": {"density": 0.2}}),
    "dare_ties": ({"weight": 1.0, "density": 0.5}, {"normalize": True}, {"dare_ties": {"density": 0.5, "scale": 1.0}}),
}
DRAWN = ("dare_ties",)  # what is dropped is drawn by each side
FULL = 320  # millions
SAMPLE = "model.layers.0.mlp.up_proj.weight"


def shape(millions: int) -> dict[str, int]:
    """A Llama of about so many parameters: hidden size d, 12 d^2 a block and words x d twice."""
    layers, words = 16, 32_000
    d = 64 * max(1, round(((words**2 + 12 * layers * millions * 1e6) ** 0.5 - words) / (12 * layers) / 64))
    return {"hidden_size": d, "intermediate_size": 64 * round(8 * d / 3 / 64), "num_hidden_layers": layers, "vocab_size": words,
            "num_attention_heads": d // 64, "num_key_value_heads": d // 64, "max_position_embeddings": 512}  # fmt: skip


def fit(millions: int, models: int, where: Path) -> int:
    """Fewer parameters where disk or memory would be short: the folders and two results, and all of it in the file cache."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = min(shutil.disk_usage(where).free / 4, pages) / (2e6 * (models + 3))
    return max(8, min(millions, int(most)))


def folders(where: Path, millions: int, models: int, dtype: str = "bfloat16") -> tuple[list[Path], int]:
    """The base first; and the bytes of one."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = getattr(torch, dtype)
    config = AutoConfig.for_model("llama", **shape(millions), dtype=dtype, tie_word_embeddings=False,
                                  architectures=["LlamaForCausalLM"])  # fmt: skip
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    rng, made = torch.Generator().manual_seed(0), list[Path]()
    base = {n: 0.02 * torch.randn(s, generator=rng, dtype=kind) for n, s in shapes.items()}
    for name in ["base", *(f"m{j}" for j in range(models))]:
        made.append(where / name)
        made[-1].mkdir()
        state = {
            n: t + 0.002 * torch.randn(t.shape, generator=rng, dtype=t.dtype) if name != "base" else t for n, t in base.items()
        }
        save_file(state, made[-1] / "model.safetensors", metadata={"format": "pt"})
        (made[-1] / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    return made, sum(kind.itemsize * s.numel() for s in shapes.values())


def plan(where: Path, method: str, made: list[Path], dtype: str = "bfloat16", **more: Any) -> Path:
    each, common, _ = METHODS[method]
    text = {"merge_method": method, "dtype": dtype, "models": [{"model": str(m), "parameters": each} for m in made[1:]]}
    if method != "linear":
        text["base_model"] = str(made[0])
    if common or more:
        text["parameters"] = common | more
    (where / f"{method}.yml").write_text(json.dumps(text))  # JSON is YAML
    return where / f"{method}.yml"


def once(python: str, code: str, where: Path, file: Path, made: list[Path], spec: Any, only: str | None = SAMPLE) -> Any:
    """(seconds and peak bytes, what came out)"""
    out, path = where / "out", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([python, "-c", code, str(file), str(out), json.dumps([str(m) for m in made]), json.dumps(spec)],
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    if done.returncode:
        sys.exit(f"{python} failed:\n{done.stderr[-3000:]}")
    some = tensors(out, only)
    shutil.rmtree(out)
    return json.loads(done.stdout.splitlines()[-1]), some


def tensors(folder: Path, only: str | None = SAMPLE) -> dict[str, Any]:
    """The tensor ``only`` of a folder, or all of them, in fp32."""
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {n: file.get_tensor(n).float() for n in file.keys() if n == (only or n)}  # noqa: SIM118
    return found


def far(ours: dict[str, Any], theirs: dict[str, Any], base: dict[str, Any]) -> float:
    """|ours - theirs| / |theirs - base|, over all tensors."""
    assert ours.keys() == theirs.keys() <= base.keys() and ours
    apart, moved = (
        sum(float((a[n] - b[n]).double().square().sum()) for n in theirs) for a, b in ((ours, theirs), (theirs, base))
    )
    return float(f"{(apart / moved) ** 0.5:.3g}")


def exactly(peer: str, where: Path, models: int, methods: list[str]) -> dict[str, dict[str, float]]:
    """How far both sides are apart where nothing is rounded to bf16: method -> {way: far}."""
    where.mkdir()
    made, found = folders(where, 1, models, "float32")[0], dict[str, dict[str, float]]()
    base = tensors(made[0], None)
    for method in methods:
        file = plan(where, method, made, "float32")
        theirs = once(peer, THEIRS, where, file, made, None, None)[1]
        ours = {way: once(sys.executable, OURS, where, file, made, spec, None)[1]
                for way, spec in (("file", None), ("folder", METHODS[method][2]))}  # fmt: skip
        found[method] = {way: far(one, theirs, base) for way, one in ours.items()}
        if method in DRAWN:
            other = once(sys.executable, OURS, where, plan(where, method, made, "float32", seed=1), made, None, None)[1]
            found[method]["by seed"] = far(other, ours["file"], base)
        bench.told(f"{method} in fp32: {found[method]}")
    return found


def ceiling(made: list[Path], where: Path) -> float:
    """Gigabytes a second of reading all folders' weights, and writing as much as one of them."""
    buffer, total, out = bytearray(1 << 23), 0, where / "copy"
    with out.open("wb") as copy:

        def through() -> None:
            nonlocal total
            for folder in made:
                with (folder / "model.safetensors").open("rb") as file:
                    while n := file.readinto(buffer):
                        total += n
                        if folder == made[0]:
                            copy.write(memoryview(buffer)[:n])

        took = bench.timed(through)[0]
    out.unlink()
    return total / took / 1e9


def main() -> None:
    ask = bench.arguments(__doc__)
    ask.add_argument("--peer", default="", help="python with mergekit")
    ask.add_argument("--millions", type=int, default=FULL, help="parameters of a model; fewer where disk or memory is short")
    ask.add_argument("--models", type=int, default=4)
    ask.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    ask.add_argument("--reps", type=int, default=5)
    ask.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()), help="a folder of the disk to work on")
    a = ask.parse_args()
    peer = a.peer
    if peer and subprocess.run([peer, "-c", "import mergekit"], capture_output=True).returncode:
        peer = ""
    if not peer:
        bench.told(f"mergekit is absent{f' in {a.peer}' if a.peer else ''}: give --peer PYTHON; only our own numbers follow")
    facts, rows, found = bench.machine("safetensors"), list[list[Any]](), dict[str, Any]()
    with tempfile.TemporaryDirectory(dir=a.where) as place:
        where, millions = Path(place), fit(a.millions, a.models, a.where)
        if millions < a.millions:
            bench.told(f"{a.millions} million parameters do not fit here; {millions} million instead")
        made, size = folders(where, millions, a.models)
        bench.told(f"{a.models} models and a base of {size / 2e6:.0f} million parameters, {size / 1e6:.0f} MB each")
        os.sync()
        facts["ceiling"] = top = round(max(ceiling(made, where) for _ in range(3)), 3)
        base, exact = tensors(made[0]), exactly(peer, where / "fp32", a.models, a.methods) if peer else {}
        for method in a.methods:
            file, read = plan(where, method, made), size * (a.models + (method != "linear")) / 1e9
            ways = {"file": (sys.executable, OURS, None), "folder": (sys.executable, OURS, METHODS[method][2])}
            ways |= {"mergekit": (peer, THEIRS, None)} if peer else {}
            took: dict[str, list[float]] = {way: [] for way in ways}
            peaks, some = dict.fromkeys(ways, 0.0), dict[str, Any]()
            for i in range(a.reps):
                for way in list(ways) if i % 2 else list(ways)[::-1]:  # so that a slow moment meets all of them alike
                    python, code, spec = ways[way]
                    measured, some[way] = once(python, code, where, file, made, spec)
                    took[way].append(measured["seconds"])
                    peaks[way] = max(peaks[way], measured["peak"])
            found[method] = {way: {"seconds": [round(s, 3) for s in taken], "gigabytes_per_second": round(read / min(taken), 3),
                                   "of_ceiling": round(read / min(taken) / top, 3), "peak_megabytes": round(peaks[way] / 1e6)}
                             for way, taken in took.items()}  # fmt: skip
            if peer:
                found[method]["differs"] = {"float32": exact[method], "bfloat16": far(some["file"], some["mergekit"], base)}
            for way in ("file", "folder"):
                ratio = bench.ratio(took["mergekit"], took[way]) if peer else {}
                found[method][way]["times_as_fast"] = ratio
                rows.append([f"{method} {way}", min(took[way]), found[method][way]["gigabytes_per_second"],
                             found[method][way]["of_ceiling"], found[method][way]["peak_megabytes"],
                             min(took["mergekit"]) if peer else None, ratio.get("median"), ratio.get("low"),
                             ratio.get("high")])  # fmt: skip
            bench.told(f"{method}: {found[method]}")
    bench.table(["method", "s", "GB/s", "of ceiling", "peak MB", "mergekit s", "times, median", "low", "high"], rows)
    bench.emit("merge", machine=facts, load_after=os.getloadavg()[0], millions=round(size / 2e6), models=a.models, reps=a.reps,
               found=found)  # fmt: skip


if __name__ == "__main__":
    main()
