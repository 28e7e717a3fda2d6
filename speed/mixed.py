"""One batch whose rows belong to many tasks, against bare f on the same batch; and PEFT's adapter_names beside it.

    python speed/mixed.py [--slots 1,8,64] [--dtypes fp32,bf16] [--reps 30] [--rows 64] [--length 32]

T LoRA slots (rank 8 on query and value of all blocks) are loaded from one file each, as a bundle's are. Rows come in any
order, from 1, 8 or as many distinct slots as there are; ours includes sorting them by slot, as a model does when it
answers. ours/f: f as we run it; ours/sdpa: f with fused attention, as transformers loads it, which PEFT's ratio is to.
All ways of a cell are timed in turn; least is the ratio of the least times, median that of the pairs.
"""

import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def cell(ours: Ours, peer: Peer | None, fused: Any, batch: Any, reps: int) -> dict[str, Any]:
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
    a = ask.parse_args()
    import torch

    peft = bench.versioned("peft")
    facts, cells = bench.machine("transformers", "peft"), dict[str, Any]()
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (a.rows, a.length), generator=rng)
    with tempfile.TemporaryDirectory() as temp, torch.inference_mode():
        for short in a.dtypes.split(","):
            dtype = getattr(torch, DTYPES[short])
            ours, fused = Ours(Path(temp), dtype, max(a.slots)), loaded(dtype, "sdpa")
            peer = Peer(Path(temp), dtype) if peft else None
            for n in a.slots:
                ours.load(n)
                theirs = peer if n <= PEER_MOST else None
                if theirs:
                    theirs.load(n)
                for distinct in sorted({min(n, a.rows, k) for k in (1, 8, a.rows)}):
                    picked = torch.randperm(n, generator=rng)[:distinct] + 1
                    slots = picked[torch.randperm(a.rows, generator=rng) % distinct]
                    found = cell(ours, theirs, fused, (ids, torch.ones_like(ids), slots), a.reps)
                    cells[f"{short} T{n} distinct{distinct}"] = found
                    bench.told(f"{short}, {n} slots, {distinct} distinct: ours/f {found['ours/f']}")
    kinds = ("ours/f", "ours/sdpa", "peer/sdpa")
    print()
    measures = [(k, m) for k in kinds for m in ("least", "median")]
    head = ["cell", "ours ms", "f ms", *[f"{k} {m}" for k, m in measures], "load s", "peer load s", "kB a slot"]
    bench.table(head, [
        [name, c["ms"]["ours"], c["ms"]["f"], *[c.get(k, {}).get(m) for k, m in measures], c["load_s"], c["peer_load_s"],
         c["bytes_per_slot"] / 1000] for name, c in cells.items()
    ])  # fmt: skip
    if not peft:
        print("the peer is not installed: pip install peft")
    bench.emit("mixed", machine=facts, load_after=os.getloadavg()[0], rows=a.rows, length=a.length, reps=a.reps, cells=cells)


if __name__ == "__main__":
    main()
