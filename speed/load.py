"""A bundle of many tasks, from its folder to ready: seconds and memory per task, PEFT with as many adapters beside it.

    python speed/load.py [--tasks 1,64,500] [--reps 5] [--peer-adapters 32,64] [--peer-reps 2] [--out docs/speed/load.json]

Ours: a bundle whose tasks have a LoRA slot (rank 8 on query and value of all blocks, bf16) and a head of eight classes each,
all of them different; written through the library's own functions, nobody trained them. Counted is ``load(folder)``: f, its
fingerprint, every checksum, all slots and heads. Peer: PEFT on f as transformers loads it, one load_adapter for each of as
many LoRA folders of the same shape, without heads and with f loaded before. Every load has a process of its own; imports come
before it and are counted apart. Seconds are medians; CPU seconds are what a busy machine does not stretch. Memory is what no
file backs; that of a task: the growth from the smallest bundle to the largest, over the tasks between them (the peer: over
its adapters).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import _bench as bench

LABELS = [f"class {i}" for i in range(8)]
LIMIT = 2.0  # seconds in which the largest bundle is to be ready
OURS = """
import json, sys, time
begun = time.perf_counter()
import transformers.models.bert.modeling_bert, transformers.models.bert.tokenization_bert
from anabranch.engine import model
import _bench as bench
imports, before, cpu = time.perf_counter() - begun, bench.anonymous(), time.process_time()
seconds, loaded = bench.timed(lambda: model.load(sys.argv[1]))
cpu, grown = time.process_time() - cpu, bench.anonymous() - before
assert len(loaded.predict("t0", ["a text"])) == 1
print(json.dumps({"seconds": seconds, "cpu": cpu, "imports": imports, "anonymous": grown}))
"""
THEIRS = """
import json, sys, time
from pathlib import Path
begun = time.perf_counter()
import torch, transformers.models.bert.modeling_bert
from peft import PeftModel
from transformers import AutoModel
from anabranch.backbone.minilm import minilm
import _bench as bench
imports = time.perf_counter() - begun
folders = sorted(Path(sys.argv[1]).iterdir())[: int(sys.argv[2])]
f = AutoModel.from_pretrained(minilm(), dtype=torch.bfloat16, add_pooling_layer=False)
def load():
    made = PeftModel.from_pretrained(f, folders[0], adapter_name="a0")
    for i, folder in enumerate(folders[1:], 1):
        made.load_adapter(folder, adapter_name=f"a{i}", low_cpu_mem_usage=True)
    return made
before, cpu = bench.anonymous(), time.process_time()
seconds, loaded = bench.timed(load)
cpu, grown = time.process_time() - cpu, bench.anonymous() - before
print(json.dumps({"seconds": seconds, "cpu": cpu, "imports": imports, "anonymous": grown}))
"""


def bundled(folder: Path, tasks: int) -> None:
    """A bundle of so many tasks, each with numbers of its own."""
    import torch

    from anabranch import __version__
    from anabranch.core.bank import Bank
    from anabranch.core.names import make
    from anabranch.core.site import find
    from anabranch.engine import job, store
    from anabranch.engine.backbone import backbone_of

    backbone, lora = backbone_of("minilm", "bfloat16"), make("delta", {"lora": {"rank": 8}})
    bank = Bank.make(lora, make("gate", "by_task"), find(backbone.f, lora.at), torch.Generator())
    record = {"kind": "classify", "labels": LABELS, "two": False, "mean": [], "std": [], "metric": "accuracy", "rung": "delta",
              "valid": None, "test": None, "max_length": 64, "description": None}  # fmt: skip
    records = {}
    for i in range(tasks):
        rng = torch.Generator().manual_seed(i)
        slot = {f"0/{site}": {n: 0.02 * torch.randn(t.shape, generator=rng) for n, t in p.items()}
                for site, p in bank.fresh(rng).items()}  # fmt: skip
        head = job.fresh(len(LABELS), torch.randn(16, backbone.d, generator=rng), backbone.d)
        records[f"t{i}"] = store.save_task(folder, record, store.pack(slot, "bf16"), head, {})
    store.save(folder, {
        "backbone": {"id": backbone.id, "fingerprint": backbone.fingerprint}, "dtype": "bfloat16",
        "banks": [store.bank_card(bank)], "tasks": records, "shared": None,
        "made": {"anabranch": __version__, "torch": torch.__version__, "seed": 0, "plan": {"tasks": {}}},
    })  # fmt: skip


def adapters(place: Path, n: int) -> None:
    """PEFT folders of as many LoRAs, each with numbers of its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel

    from anabranch.backbone.minilm import minilm

    f = AutoModel.from_pretrained(minilm(), dtype=torch.bfloat16, add_pooling_layer=False)
    made = get_peft_model(f, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], init_lora_weights=False))
    for i in range(n):
        folder, rng = place / f"{i:04}", torch.Generator().manual_seed(i)
        made.save_pretrained(folder)
        file = folder / "adapter_model.safetensors"
        state = {k: (0.02 * torch.randn(t.shape, generator=rng)).to(t) for k, t in load_file(file).items()}
        save_file(state, file, metadata={"format": "pt"})


def once(code: str, *given: Any) -> dict[str, float]:
    """What the code prints in a fresh process."""
    place = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code, *map(str, given)], capture_output=True, text=True, env=os.environ | place)
    if done.returncode:
        sys.exit(f"a load failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    middle = {k: median(one[k] for one in found) for k in found[0]}
    return {
        "seconds": round(middle["seconds"], 3), "each": [round(one["seconds"], 3) for one in found],
        "cpu": round(middle["cpu"], 3), "imports": round(middle["imports"], 2), "megabytes": round(middle["anonymous"] / 1e6, 1),
    }  # fmt: skip


def main() -> None:
    ask = bench.arguments(__doc__)
    ask.add_argument("--tasks", type=bench.numbers, default=[1, 64, 500], help="of the bundles, ascending")
    ask.add_argument("--reps", type=int, default=5)
    ask.add_argument("--peer-adapters", type=bench.numbers, default=[32, 64], help="0: without the peer")
    ask.add_argument("--peer-reps", type=int, default=2, help="a load of 64 takes many seconds")
    ask.add_argument("--out", type=Path, help="a JSON file for the result, such as docs/speed/load.json")
    a = ask.parse_args()
    peer = bool(bench.versioned("peft")) and any(a.peer_adapters)
    facts = bench.machine("transformers", "safetensors", "peft")
    ours: dict[int, list[dict[str, float]]] = {n: [] for n in a.tasks}
    theirs: dict[int, list[dict[str, float]]] = {n: [] for n in a.peer_adapters if peer}
    with tempfile.TemporaryDirectory() as temp:
        for n in a.tasks:
            bundled(Path(temp) / f"{n}", n)
        size = sum(p.stat().st_size for p in (Path(temp) / f"{a.tasks[-1]}").iterdir()) / a.tasks[-1]
        if peer:
            adapters(Path(temp) / "peft", max(a.peer_adapters))
        for rep in range(max(a.reps, a.peer_reps)):  # in turn, so that a slow moment meets both
            for n in a.tasks if rep < a.reps else ():
                ours[n].append(once(OURS, Path(temp) / f"{n}"))
            for n in theirs if rep < a.peer_reps else ():
                theirs[n].append(once(THEIRS, Path(temp) / "peft", n))
            bench.told(f"repetition {rep + 1}: " + ", ".join(f"{n} tasks {one[-1]['seconds']:.2f} s" for n, one in ours.items()))
    report(ours, theirs, round(size), machine=facts, load_after=os.getloadavg()[0], out=a.out)


def report(ours: dict[int, list[Any]], theirs: dict[int, list[Any]], size: int, out: Path | None, **facts: Any) -> None:
    mine, peers = ({n: summary(found) for n, found in way.items()} for way in (ours, theirs))
    few, many = min(mine), max(mine)
    grown = (mine[many]["megabytes"] - mine[few]["megabytes"]) / max(1, many - few)
    both = [("ours", "tasks", n, s) for n, s in mine.items()] + [("peft", "adapters", n, s) for n, s in peers.items()]
    rows = [[f"{who}, {n} {what}", s["seconds"], s["cpu"], 1000 * s["seconds"] / n, s["imports"], s["megabytes"]]
            for who, what, n, s in both]  # fmt: skip
    print()
    bench.table(["", "seconds", "CPU s", "ms each", "imports s", "MB"], rows)
    each = {n: s["seconds"] / n for n, s in peers.items()}
    faster = {n: round(one / (mine[many]["seconds"] / many), 1) for n, one in each.items()}
    alike = {n: round(peers[n]["seconds"] / mine[n]["seconds"], 2) for n in peers if n in mine}
    within = mine[many]["seconds"] <= LIMIT
    heavy = {n: round(1000 * s["megabytes"] / n, 1) for n, s in peers.items()}
    print(f"{many} tasks in {mine[many]['seconds']:.2f} s: {'within' if within else 'OVER'} the {LIMIT:g} s allowed")
    print(f"kilobytes of memory a task: {1000 * grown:.0f}; of the peer's adapters: {heavy}")
    found = {"what": "load"} | facts | {
        "tasks": mine, "peer_adapters": peers, "kilobytes_per_task": round(1000 * grown, 1), "bytes_on_disk_per_task": size,
        "peer_kilobytes_per_adapter": heavy,
        "peer_seconds_per_adapter": {n: round(s, 4) for n, s in each.items()}, "faster_per_task": faster,
        "faster_at_equal_number": alike, "limit_seconds": LIMIT, "within_limit": within,
    }  # fmt: skip
    if not peers:
        print("without the peer: pip install peft")
    if out:
        out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
