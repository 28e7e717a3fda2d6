"""Our fit beside PEFT LoRA with transformers' Trainer, task by task, on the same rows, in the same process.

    python speed/fit.py [--tasks cr,trec6] [--rows 200] [--seeds 0,1,2] [--reps 2] [--default]

Ours: stages look, features, probe, delta, choose, from task folders to a bundle; a tenth of the training rows is held out
to stop, to choose the rung and to calibrate. Peer, from the same folders to adapter folders: rank 8, alpha 16 on query and
value of all blocks, mean pooling and a linear head, batch 32, learning rate 2e-3 (head 1e-2), all rows trained on; bf16
autocast and dynamic padding, its best setting here; --default adds fp32. Both pass over the rows at most 3 times, use the
same threads, and load the backbone anew in every repetition. Rows/s of training: ours is the whole delta stage
(validation, checkpoints and the measuring of what is stored included), the peer's is Trainer.train alone.
"""

import sys
import tempfile
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import _bench as bench

TASKS = "banking77,clinc150_intent,sst2,subj,trec6,snips_intent,hwu64_scenario,cr"
STAGES = ["look", "features", "probe", "delta", "choose"]
EPOCHS, BATCH, LONGEST = 3, 32, 64


def ours(folders: Sequence[Path], out: Path, seed: int) -> dict[str, Any]:
    from anabranch.engine import model, run
    from anabranch.engine.fit import fit

    model._BACKBONES.clear()  # what a user's own process pays
    run.STEPS = 1  # small tasks would take more passes than the peer
    tasks = {f.name: {"data": str(f), "max_length": LONGEST} for f in folders}
    found = fit({"backbone": "minilm", "seed": seed, "stages": STAGES, "tasks": tasks}, out)
    each = found["tasks"]
    trained = sum(t["n_train"] * len(t["curve"]) for t in each.values())
    return {
        "train": found["stages"]["delta"], "trained": trained, "stages": found["stages"], "dtype": found["dtype"],
        "passes": max(len(t["curve"]) for t in each.values()), "accuracy": {n: t["test"] for n, t in each.items()},
        "probe": {n: t["probe"] for n, t in each.items()}, "delta": {n: t["delta"] for n, t in each.items()},
        "chosen": {n: t["chosen"] for n, t in each.items()}, "kilobytes": {n: t["kilobytes"] for n, t in each.items()},
    }  # fmt: skip


def peer(folders: Sequence[Path], out: Path, seed: int, bf16: bool) -> dict[str, Any]:
    import json

    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

    from anabranch.backbone.minilm import minilm

    class Classifier(nn.Module):
        def __init__(self, encoder: nn.Module, d: int, classes: int) -> None:
            super().__init__()
            self.encoder, self.head, self.drop = encoder, nn.Linear(d, classes), nn.Dropout(0.1)

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> dict[str, Any]:
            h = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            m = attention_mask[..., None].to(h.dtype)
            logits = self.head(self.drop((h * m).sum(1) / m.sum(1)))
            return {"loss": nn.functional.cross_entropy(logits.float(), labels), "logits": logits}

    found: dict[str, Any] = {"train": 0.0, "trained": 0, "accuracy": {}}
    for folder in folders:
        set_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(minilm())
        base = AutoModel.from_pretrained(minilm(), dtype=torch.float32, add_pooling_layer=False)
        lora = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]))
        labels = json.loads((folder / "task.json").read_text(encoding="utf-8"))["labels"]
        model, parts = Classifier(lora, base.config.hidden_size, len(labels)), []
        for split in ("train", "test"):
            with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
            ids = tokenizer([r["text"] for r in rows], truncation=True, max_length=LONGEST)["input_ids"]
            parts.append([{"input_ids": i, "labels": r["label"]} for i, r in zip(ids, rows, strict=True)])
        head = list(model.head.parameters())
        rest = [p for p in model.encoder.parameters() if p.requires_grad]
        groups = [{"params": rest, "lr": 2e-3}, {"params": head, "lr": 1e-2}]
        arguments = TrainingArguments(
            output_dir=str(out), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, per_device_eval_batch_size=128,
            learning_rate=2e-3, lr_scheduler_type="linear", warmup_steps=0.1, weight_decay=0.0, use_cpu=True, bf16=bf16, seed=seed,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), parts[0],
                          optimizers=(torch.optim.AdamW(groups, weight_decay=0.0), None))  # fmt: skip
        found["train"] += bench.timed(trainer.train)[0]
        found["trained"] += EPOCHS * len(parts[0])
        said = trainer.predict(parts[1])
        found["accuracy"][folder.name] = float((np.argmax(said.predictions, -1) == said.label_ids).mean())
        lora.save_pretrained(out / folder.name)
    return found


def main() -> None:
    ask = bench.arguments(__doc__, data=True)
    ask.add_argument("--tasks", default=TASKS)
    ask.add_argument("--rows", type=int, default=1000, help="training rows a task")
    ask.add_argument("--test", type=int, default=1000, help="test rows a task, at most")
    ask.add_argument("--seeds", type=bench.numbers, default=[0], help="for example 0,1,2: of the rows and of both sides")
    ask.add_argument("--reps", type=int, default=1, help="ours, peer, ours, peer ... this many times for each seed")
    ask.add_argument("--default", action="store_true", help="add the peer's default, fp32")
    a = ask.parse_args()
    names = a.tasks.split(",")
    bench.present(a.data, names)
    if not bench.versioned("peft") or not bench.versioned("accelerate"):
        sys.exit("the peer is not installed: pip install peft accelerate")
    warnings.filterwarnings("ignore")
    ways = ["ours", "peer"] + ["peer fp32"] * a.default
    runs: dict[str, list[tuple[float, dict[str, Any]]]] = {way: [] for way in ways}
    facts = bench.machine("transformers", "peft")
    with tempfile.TemporaryDirectory() as temp:
        for seed, rep in product(a.seeds, range(a.reps)):
            place = Path(temp) / f"{seed}-{rep}"
            folders = [bench.cut(a.data, place / "data", name, a.rows, a.test, seed) for name in names]
            for way in ways:
                work = {"ours": lambda p=place, s=seed, f=folders: ours(f, p / "ours", s)}.get(
                    way, lambda p=place, s=seed, f=folders, w=way: peer(f, p / w, s, w == "peer"))  # fmt: skip
                seconds, found = bench.timed(work)
                runs[way].append((seconds, found))
                score = mean(found["accuracy"].values())
                bench.told(f"seed {seed}, repetition {rep + 1}, {way}: {seconds:.1f} s, mean accuracy {score:.4f}")
    first = runs["ours"][:: a.reps]  # repetitions of a seed differ in time only
    each = {way: {n: mean(f["accuracy"][n] for _, f in runs[way][:: a.reps]) for n in names} for way in ways}
    rungs = {rung: {n: mean(f[rung][n] for _, f in first) for n in names} for rung in ("probe", "delta")}
    columns = [rungs["probe"], rungs["delta"], *each.values()]
    print()
    bench.table(["task", "our probe", "our delta", *ways, "chosen", "kB"],
                [[n, *[c[n] for c in columns], ",".join(f["chosen"][n] for _, f in first), first[-1][1]["kilobytes"][n]] for n in names]
                + [["mean", *[mean(c.values()) for c in columns], "", ""]])  # fmt: skip
    print()
    total = {way: [s for s, _ in runs[way]] for way in ways}
    rate = {way: [f["trained"] / f["train"] for _, f in runs[way]] for way in ways}
    faster = {way: bench.ratio(total[way], total["ours"]) for way in ways[1:]}
    training = {way: bench.ratio(rate["ours"], rate[way])["median"] for way in ways[1:]}
    bench.table(["", "seconds (mean)", "training rows/s", "ours is faster by", "in training by"],
                [[way, mean(total[way]), mean(rate[way]), faster.get(way, {}).get("median"), training.get(way)] for way in ways])
    stages = {n: round(mean(f["stages"][n] for _, f in runs["ours"]), 2) for n in runs["ours"][0][1]["stages"]}
    bench.emit("fit", machine=facts, load_after=bench.os.getloadavg()[0], tasks=len(names), rows=a.rows, seeds=a.seeds, reps=a.reps,
               dtype=first[0][1]["dtype"], passes=max(f["passes"] for _, f in first), seconds={w: [round(s, 2) for s in t] for w, t in total.items()},
               stages=stages, faster=faster, rows_per_second={w: round(mean(r), 1) for w, r in rate.items()}, training_faster=training,
               accuracy={w: {n: round(v, 4) for n, v in e.items()} | {"mean": round(mean(e.values()), 4)} for w, e in (each | rungs).items()},
               chosen={n: [f["chosen"][n] for _, f in first] for n in names})  # fmt: skip


if __name__ == "__main__":
    main()
