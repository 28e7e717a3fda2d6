"""Our fit beside PEFT LoRA with transformers' Trainer, task by task, on the same rows, in the same process.

    python speed/fit.py [--tasks cr,trec6] [--rows 200] [--seeds 0,1,2] [--reps 2] [--default]

Ours: stages look, features, probe, delta, choose, from task folders to a bundle; a tenth of the training rows is held out
to stop, to choose the rung and to calibrate. Peer, from the same folders to adapter folders: rank 8, alpha 16 on query and
value of all blocks, mean pooling and a linear head, batch 32, learning rate 2e-3 (head 1e-2), all rows trained on; bf16
autocast and dynamic padding, its best setting here; --default adds fp32. Both pass over the rows at most 3 times, use the
same threads, and load the backbone anew in every repetition. Rows/s of training: ours is the whole delta stage
(validation, checkpoints and the measuring of what is stored included), the peer's is Trainer.train alone. of_ceiling: what
all of f's products take for the rows trained on, forward and back to the inputs, at the machine's best in that type, over the
time that training took; ours leaves out what lies below its slots, which it has computed once, as features.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import _bench as bench

TASKS = "banking77,clinc150_intent,sst2,subj,trec6,snips_intent,hwu64_scenario,cr"
STAGES = ["look", "features", "probe", "delta", "choose"]
EPOCHS, BATCH, LONGEST = 3, 32, 64


def gflop(folder: Path) -> float:
    """GFLOP of f's products for one training row of a task, forward and back to the inputs, in the mean."""
    import json

    from transformers import AutoConfig, AutoTokenizer

    from anabranch.backbone.minilm import minilm

    c, tokenizer = AutoConfig.from_pretrained(minilm()), AutoTokenizer.from_pretrained(minilm())
    texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    tokens = sum(map(len, tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]))
    weights = c.num_hidden_layers * (4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size)
    return 4e-9 * weights * tokens / len(texts)


def ours(folders: Sequence[Path], out: Path, seed: int) -> dict[str, Any]:
    from anabranch.engine import backbone, run
    from anabranch.engine.fit import fit

    backbone._BACKBONES.clear()  # what a user's own process pays
    run.STEPS = 1  # small tasks would take more passes than the peer
    tasks = {f.name: {"data": str(f), "max_length": LONGEST} for f in folders}
    found = fit({"backbone": "minilm", "seed": seed, "stages": STAGES, "tasks": tasks}, out)
    each = found["tasks"]
    trained = sum(t["n_train"] * len(t["curve"]) for t in each.values())
    return {
        "train": found["stages"]["delta"], "trained": trained,
        "rows": {n: t["n_train"] * len(t["curve"]) for n, t in each.items()},
        "stages": found["stages"], "dtype": found["dtype"],
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

    found: dict[str, Any] = {"train": 0.0, "trained": 0, "accuracy": {}, "rows": {}, "dtype": "bfloat16" if bf16 else "float32"}
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
            learning_rate=2e-3, lr_scheduler_type="linear", warmup_steps=0.1, weight_decay=0.0, use_cpu=True, bf16=bf16,
            seed=seed, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), parts[0],
                          optimizers=(torch.optim.AdamW(groups, weight_decay=0.0), None))  # fmt: skip
        found["train"] += bench.timed(trainer.train)[0]
        found["rows"][folder.name] = EPOCHS * len(parts[0])
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
    for module in ("peft", "transformers.trainer", "transformers.models.bert.modeling_bert", "anabranch.engine.fit"):
        import_module(module)  # imports are nobody's work
    ways = ["ours", "peer"] + ["peer fp32"] * a.default
    runs: dict[str, list[tuple[float, dict[str, Any]]]] = {way: [] for way in ways}
    facts = bench.machine("transformers", "peft")
    with tempfile.TemporaryDirectory() as temp:
        for seed, rep in product(a.seeds, range(a.reps)):
            place = Path(temp) / f"{seed}-{rep}"
            folders = [bench.cut(a.data, place / "data", name, a.rows, a.test, seed) for name in names]
            needs = {folder.name: gflop(folder) for folder in folders}
            for way in ways[::-1] if rep % 2 else ways:
                work = {"ours": lambda p=place, s=seed, f=folders: ours(f, p / "ours", s)}.get(
                    way, lambda p=place, s=seed, f=folders, w=way: peer(f, p / w, s, w == "peer"))  # fmt: skip
                seconds, found = bench.timed(work)
                best = sum(needs[n] * rows for n, rows in found["rows"].items()) / facts["gigaflops"][found["dtype"]]
                found["of_ceiling"] = best / found["train"]
                runs[way].append((seconds, found))
                score = mean(found["accuracy"].values())
                bench.told(f"seed {seed}, repetition {rep + 1}, {way}: {seconds:.1f} s, mean accuracy {score:.4f}")
            shutil.rmtree(place)
    report(names, ways, runs, a.reps, machine=facts, rows=a.rows, seeds=a.seeds)


def report(names: list[str], ways: list[str], runs: dict[str, list[Any]], reps: int, **facts: Any) -> None:
    """``runs``: (seconds, what :func:`ours` or :func:`peer` found) of every repetition, by way."""
    once = {way: [found for _, found in runs[way][::reps]] for way in ways}  # repetitions of a seed differ in time only
    score = {way: {n: mean(found["accuracy"][n] for found in once[way]) for n in names} for way in ways}
    score |= {f"our {rung}": {n: mean(found[rung][n] for found in once["ours"]) for n in names} for rung in ("probe", "delta")}
    chosen = {n: [found["chosen"][n] for found in once["ours"]] for n in names}
    rows = [[n, *[s[n] for s in score.values()], ",".join(chosen[n]), once["ours"][-1]["kilobytes"][n]] for n in names]
    print()
    bench.table(["task", *score, "chosen", "kB"], [*rows, ["mean", *[mean(s.values()) for s in score.values()], "", ""]])
    print()
    seconds = {way: [s for s, _ in runs[way]] for way in ways}
    rate = {way: [found["trained"] / found["train"] for _, found in runs[way]] for way in ways}
    faster = {way: bench.ratio(seconds[way], seconds["ours"]) for way in ways[1:]}
    training = {way: bench.ratio(rate["ours"], rate[way]) for way in ways[1:]}
    share = {way: round(median(found["of_ceiling"] for _, found in runs[way]), 3) for way in ways}
    head = ["", "seconds (median)", "training rows/s", "of ceiling", "ours is faster by", "in training by"]
    middle = [[ratios.get(way, {}).get("median") for way in ways] for ratios in (faster, training)]
    bench.table(head, [[w, median(seconds[w]), median(rate[w]), share[w], *m] for w, *m in zip(ways, *middle, strict=True)])
    ours = [found for _, found in runs["ours"]]
    stages = {stage: round(mean(found["stages"][stage] for found in ours), 2) for stage in ours[0]["stages"]}
    accuracy = {way: {n: round(v, 4) for n, v in s.items()} | {"mean": round(mean(s.values()), 4)} for way, s in score.items()}
    bench.emit(
        "fit", **facts, load_after=os.getloadavg()[0], dtype=ours[0]["dtype"], passes=max(found["passes"] for found in ours),
        seconds={way: [round(s, 2) for s in found] for way, found in seconds.items()}, stages=stages, faster=faster,
        rows_per_second={way: round(median(r), 1) for way, r in rate.items()}, training_faster=training, of_ceiling=share,
        accuracy=accuracy, chosen=chosen,
    )  # fmt: skip


if __name__ == "__main__":
    main()
