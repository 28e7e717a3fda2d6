"""One batch whose rows belong to many tasks, against bare f on the same batch; and PEFT's adapter_names beside it.

    python speed/mixed.py [--slots 1,8,64] [--dtypes fp32,bf16] [--reps 30] [--rows 64] [--length 32] [--experts 64] [--top 2]

T LoRA slots (rank 8 on query and value of all blocks) are loaded from one file each, as a bundle's are. Rows come in any
order, from 1, 8, a third as many distinct slots as rows (three rows of each) or as many; ours includes sorting them by slot,
as a model does when it answers. ours/f: f as we run it; ours/sdpa: f with fused attention, as transformers loads it, which
PEFT's ratio is to.
All ways of a cell are timed in turn; least is the ratio of the least times, median that of the pairs.
Last, gates: a whole forward with --experts LoRA experts at query and value of all blocks, each of them a candidate of every row,
of which each token (arrow, phatgoose, task_aware) or each row (keyed) keeps the best --top; and with 16 dense experts in the last
block and 16 adapters. Each as a ratio to one such expert for all rows.
"""

import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import _bench as bench

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
PEER_MOST = 64  # the peer's loading time grows with the square of the number: 393 adapters took 150 s


def loaded(dtype: Any, attention: str) -> Any:
    from transformers import AutoModel

    from anabranch.backbone.minilm import minilm

    return AutoModel.from_pretrained(minilm(), dtype=dtype, add_pooling_layer=False, attn_implementation=attention).eval()


class Ours:
    """f with slots that lie in files of their own, in bf16, as in a bundle."""

    def __init__(self, folder: Path, dtype: Any, most: int) -> None:
        import torch

        from anabranch.core.names import make
        from anabranch.core.site import find
        from anabranch.engine.store import pack, put

        self.folder, self.dtype, self.f = folder, dtype, loaded(dtype, "eager")
        self.lora, self.gate = make("delta", {"lora": {"rank": 8}}), make("gate", "by_task")
        self.sites, self.files = find(self.f, self.lora.at), list[str]()
        for i in range(most):
            rng = torch.Generator().manual_seed(i)
            tree = {s.key: {n: 0.02 * torch.randn(t.shape, generator=rng) for n, t in self.lora.init(s, rng).items()}
                    for s in self.sites}  # fmt: skip
            self.files.append(put(folder, pack(tree, "bf16")))

    def load(self, n: int) -> None:
        import torch

        from anabranch.core.adapt import Adapted
        from anabranch.core.bank import Bank
        from anabranch.engine.store import get, unpack

        self.adapted = self.bank = None
        gc.collect()
        before = bench.anonymous()

        def bank() -> Bank:
            made = Bank.make(self.lora, self.gate, self.sites, torch.Generator())
            made.add([unpack(get(self.folder, name)) for name in self.files[:n]])
            return made.to(self.dtype)

        self.seconds, self.bank = bench.timed(bank)
        gc.collect()
        self.resident = (bench.anonymous() - before) // n
        self.bytes = self.bank.tables["own"].n * self.dtype.itemsize
        self.adapted = Adapted(self.f, [self.bank])

    def run(self, ids: Any, mask: Any, slots: Any) -> Any:
        from anabranch.core.route import Route

        order = slots.argsort(stable=True)
        return self.adapted({"input_ids": ids[order], "attention_mask": mask[order]}, Route.to(slots[order]))


class Peer:
    """PEFT with adapters loaded from one file, on f as transformers loads it."""

    def __init__(self, folder: Path, dtype: Any) -> None:
        from peft import LoraConfig, PeftModel, get_peft_model

        self.folder, self.have, self.seconds = folder / f"peft-{dtype}", 1, 0.0
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], init_lora_weights=False)
        get_peft_model(loaded(dtype, "sdpa"), config).save_pretrained(self.folder)
        self.model = PeftModel.from_pretrained(loaded(dtype, "sdpa"), self.folder, adapter_name="a1").eval()

    def load(self, n: int) -> None:
        def more() -> None:
            for i in range(self.have, n):
                self.model.load_adapter(self.folder, adapter_name=f"a{i + 1}", low_cpu_mem_usage=True)

        self.seconds, self.have = self.seconds + bench.timed(more)[0], n
        self.model.eval()

    def run(self, ids: Any, mask: Any, slots: Any) -> Any:
        return self.model(input_ids=ids, attention_mask=mask, adapter_names=[f"a{i}" for i in slots.tolist()])


class Way(NamedTuple):
    """``experts`` of a delta under a gate, told of ``tasks`` tasks; ``one``: the way with one expert that it is held against."""

    delta: str
    gate: str
    settings: dict[str, int]
    experts: int
    one: str
    tasks: int = 1
    at: list[str] | None = None


def ways_of(experts: int, top: int, rows: int) -> dict[str, Way]:
    last, best = ["attention.query[-1:]", "attention.value[-1:]"], {"top": top}
    return {
        "one": Way("lora", "by_task", {}, 1, ""),
        "arrow": Way("lora", "arrow", best, experts, "one"),
        "keyed": Way("lora", "keyed", best, experts, "one"),
        "phatgoose": Way("lora", "phatgoose", best, experts, "one"),
        "task_aware": Way("lora", "task_aware", best | {"slots": experts}, experts, "one", rows),
        "one dense": Way("dense", "by_task", {}, 1, "", at=last),
        "dense": Way("dense", "phatgoose", best, 16, "one dense", at=last),
        "one adapter": Way("adapter", "by_task", {}, 1, ""),
        "adapters": Way("adapter", "task_aware", {"top": 1, "slots": 16}, 16, "one adapter"),
        "adapters of tasks": Way("adapter", "task_aware", {"top": 1, "slots": 16}, 16, "one adapter", 8),
    }


def gates(dtype: Any, ways: dict[str, Way], ids: Any, reps: int, ceiling: float) -> dict[str, Any]:
    """Times a forward under gates that choose among experts, and with one expert for all rows."""
    import torch

    from anabranch.core.adapt import Adapted
    from anabranch.core.bank import Bank
    from anabranch.core.names import make
    from anabranch.core.route import Route
    from anabranch.core.site import find

    f = loaded(dtype, "eager")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def work(way: Way) -> Callable[[], Any]:
        delta, gate = make("delta", way.delta), make("gate", {way.gate: way.settings})
        sites = find(f, way.at or delta.at)
        bank, slots = Bank.make(delta, gate, sites, torch.Generator(), None, 0, way.experts), []
        for i in range(way.experts):
            rng, slot = torch.Generator().manual_seed(i), dict[str, Any]()
            for site in sites:
                p = {name: 0.02 * torch.randn(t.shape, generator=rng) for name, t in delta.init(site, rng).items()}
                keys = gate.key(site, p, rng)  # those that learn begin alike
                keys = {name: torch.randn(t.shape, generator=rng) if gate.trained else t for name, t in keys.items()}
                slot[site.key] = p | {f"key.{name}": t for name, t in keys.items()}
            slots.append(slot)
        bank.add(slots)
        for i in range(way.tasks):
            bank.add_gate(bank.gates(torch.Generator().manual_seed(i)))
        who, every = torch.arange(len(ids)) % way.tasks + 1, torch.arange(1, way.experts + 1).expand(len(ids), -1)
        adapted, route = Adapted(f, [bank.to(dtype)]), Route.to(every, who=who)
        return lambda: adapted(inputs, route)

    took = bench.alternate({"f": lambda: f(**inputs)} | {name: work(way) for name, way in ways.items()}, reps)
    return {
        "ms": {way: round(1000 * min(seconds), 2) for way, seconds in took.items()},
        "of_ceiling": shares(f, ids, took, ceiling),
    } | {f"{name}/{way.one}": bench.ratio(took[name], took[way.one]) for name, way in ways.items() if way.one}  # fmt: skip


def shares(f: Any, ids: Any, took: dict[str, list[float]], ceiling: float) -> dict[str, float]:
    """What f's own products need at the machine's best, as a share of each way's time."""
    work = 2e-9 * ids.numel() * sum(p.numel() for p in f.encoder.parameters() if p.ndim == 2)
    return {way: round(work / min(seconds) / ceiling, 3) for way, seconds in took.items()}


def cell(ours: Ours, peer: Peer | None, fused: Any, batch: Any, reps: int, ceiling: float) -> dict[str, Any]:
    """Times the batch (ids, mask, slots) in every way."""
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours.run(*batch),
        "f": lambda: ours.f(input_ids=batch[0], attention_mask=batch[1]),
        "sdpa": lambda: fused(input_ids=batch[0], attention_mask=batch[1]),
    } | ({"peer": lambda: peer.run(*batch)} if peer else {})
    took = bench.alternate(ways, reps)
    pairs = [("ours", "f"), ("ours", "sdpa")] + [("peer", "sdpa")] * bool(peer)
    return {
        "ms": {way: round(1000 * min(seconds), 2) for way, seconds in took.items()},
        "of_ceiling": shares(ours.f, batch[0], took, ceiling),
        "load_s": round(ours.seconds, 3), "peer_load_s": round(peer.seconds, 2) if peer else None,
        "bytes_per_slot": ours.bytes, "resident_per_slot": ours.resident,
    } | {f"{a}/{b}": bench.ratio(took[a], took[b]) for a, b in pairs}  # fmt: skip


def main() -> None:
    ask = bench.arguments(__doc__)
    ask.add_argument("--slots", type=bench.numbers, default=[1, 8, 64, 256, 512, 1000])
    ask.add_argument("--dtypes", default="fp32,bf16")
    ask.add_argument("--reps", type=int, default=30)
    ask.add_argument("--rows", type=int, default=64)
    ask.add_argument("--length", type=int, default=32, help="tokens of every row")
    ask.add_argument("--experts", type=int, default=64, help="of the gates; 0: leave them out")
    ask.add_argument("--top", type=int, default=2, help="experts that a token keeps")
    a = ask.parse_args()
    import torch

    peft = bench.versioned("peft")
    facts, cells, gated = bench.machine("transformers", "peft"), dict[str, Any](), dict[str, Any]()
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (a.rows, a.length), generator=rng)
    ways = ways_of(a.experts, a.top, a.rows)
    with tempfile.TemporaryDirectory() as temp, torch.inference_mode():
        for short in a.dtypes.split(","):
            dtype, ceiling = getattr(torch, DTYPES[short]), facts["gigaflops"][DTYPES[short]]
            ours, fused = Ours(Path(temp), dtype, max(a.slots)), loaded(dtype, "sdpa")
            peer = Peer(Path(temp), dtype) if peft else None
            for n in a.slots:
                ours.load(n)
                theirs = peer if n <= PEER_MOST else None
                if theirs:
                    theirs.load(n)
                for distinct in sorted({min(n, a.rows, k) for k in (1, 8, a.rows // 3, a.rows)}):
                    picked = torch.randperm(n, generator=rng)[:distinct] + 1
                    slots = picked[torch.randperm(a.rows, generator=rng) % distinct]
                    found = cell(ours, theirs, fused, (ids, torch.ones_like(ids), slots), a.reps, ceiling)
                    cells[f"{short} T{n} distinct{distinct}"] = found
                    bench.told(f"{short}, {n} slots, {distinct} distinct: ours/f {found['ours/f']}")
            if a.experts:
                gated[short] = found = gates(dtype, ways, ids, a.reps, ceiling)
                bench.told(f"{short}: arrow/one {found['arrow/one']}, keyed/one {found['keyed/one']}")
    kinds = ("ours/f", "ours/sdpa", "peer/sdpa")
    print()
    measures = [(k, m) for k in kinds for m in ("least", "median")]
    head = ["cell", "ours ms", "f ms", *[f"{k} {m}" for k, m in measures], "load s", "peer load s", "kB a slot"]
    bench.table(head, [
        [name, c["ms"]["ours"], c["ms"]["f"], *[c.get(k, {}).get(m) for k, m in measures], c["load_s"], c["peer_load_s"],
         c["bytes_per_slot"] / 1000] for name, c in cells.items()
    ])  # fmt: skip
    if gated:
        print("\nexperts under a gate, against one expert for all rows")
        head = ["way", "delta", "gate", "top", "experts", "tasks", "ms", "one ms", "f ms", "least", "median", "low", "high"]
        bench.table(head, [
            [f"{short} {name}", way.delta, way.gate, way.settings["top"], way.experts, way.tasks,
             *(c["ms"][k] for k in (name, way.one, "f")), *c[f"{name}/{way.one}"].values()]
            for short, c in gated.items() for name, way in ways.items() if way.one
        ])  # fmt: skip
    if not peft:
        print("the peer is not installed: pip install peft")
    bench.emit("mixed", machine=facts, load_after=os.getloadavg()[0], rows=a.rows, length=a.length, reps=a.reps, cells=cells,
               experts=a.experts, top=a.top, gates=gated,
               ways={name: way._asdict() for name, way in ways.items() if way.one})  # fmt: skip


if __name__ == "__main__":
    main()
