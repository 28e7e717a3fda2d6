"""Skills (four LoRAs of rank 2) that fifteen text tasks train together and mix by routing of their own, then moved to five other
tasks with 50 labelled rows each: MHR (eight routed blocks a layer) against Poly (one) and against one LoRA of rank 8, which has
as many numbers, shared by the fifteen; in all three everything is tuned on the new task. MHR-mu tunes the average of MHR's
skills; MHR-z tunes the routing alone, and the share of numbers that it tunes counts neither head. Changes sit at the queries
and values of the last two blocks; the fifteen have 192 rows each."""

from typing import Any

import torch

from anabranch.engine.balanced import Here
from anabranch.engine.lab import Trained, replace_gate
from anabranch.engine.passes import seeded
from anabranch.engine.share import balancer, step, together
from anabranch.engine.train import Learner

holds = ("mhr >= poly", "poly > shared", "mu >= mhr - 0.01", "z_share < 0.01")
SKILL = {"lora": {"rank": 2, "alpha": 4.0}}  # the same factor alpha / rank as rank 8 at alpha 16
FEW, HELD, PASSES = 56, 5, 10  # rows of a new task, of which a tenth is for validation; new tasks; passes over their rows


def claim(lab: Any) -> dict[str, dict[str, float]]:
    tasks = lab.tasks(20, rows=192)
    small = [task.name for task in tasks if task.labels and len(task.labels) <= 8][-HELD:]
    seen, new = lab.suite([t for t in tasks if t.name not in small]), lab.suite(lab.tasks(small, rows=FEW))
    mhr = seen.shared(SKILL, {"mhr": {"slots": 4, "heads": 8}})
    poly, shared = seen.shared(SKILL, {"poly": {"slots": 4}}), seen.shared("lora")
    average = {n: torch.stack([slot[n] for slot in mhr.slots]).mean(0) for n in mhr.slots[0]}
    routing = sum(bank.tables["gate"].n for bank in mhr.banks)
    return {
        "mhr": tuned(new, mhr),
        "poly": tuned(new, poly),
        "shared": new.own("lora", epochs=PASSES, begin={n: shared.slots[0] for n in small}).scores(),
        "mu": new.own(SKILL, epochs=PASSES, begin={n: average for n in small}).scores(),
        "z": new.over(mhr, {"mhr_z": {"heads": 8}}, epochs=PASSES).scores(),
        "alone": new.own("lora", epochs=PASSES).scores(),
        "probe": new.probe(),
        "z_share": {"numbers": routing / (routing + 4 * mhr.numbers)},
        "mhr_numbers": {"skills": 4 * mhr.numbers},
        "shared_numbers": {"skills": shared.numbers},
    }


def tuned(suite: Any, trained: Any) -> dict[str, float]:
    """Each task goes on from the skills as they are, with a routing of its own, and tunes both."""
    out, k, seed = dict[str, float](), len(trained.slots), suite.lab.seed
    for name, job in suite.jobs.items():
        banks = [replace_gate(bank, bank.gate, k) for bank in trained.banks]
        trainer = suite.trainer(banks, trained.rates)
        trainer.common, trainer.routes = True, together(k)
        gate = {f"{i}.gate": b.tables["gate"].row(b.gates(seeded(seed, name, "gate", i))) for i, b in enumerate(banks)}
        mine = Learner(job, {f"head.{n}": t.clone() for n, t in suite.heads[name].items()} | gate, PASSES)
        skills = {n: torch.stack([slot[n] for slot in trained.slots]) for n in trained.slots[0]}
        common, state = Learner(job, skills, PASSES, planned=PASSES * mine.steps), None
        for mine.epoch in range(PASSES):
            for rows in mine.batches(suite.features, seed):
                state = step(Here(trainer, common, [(mine, rows)]), balancer("mean"), state)
        slots = [{n: t[i] for n, t in common.theta.items()} for i in range(k)]
        gates = {name: {n: t for n, t in mine.theta.items() if n.endswith(".gate")}}
        only = suite.only(name)
        out |= Trained(only, banks, trained.rates, slots, {name: mine.head}, {name: list(range(k))}, gates).scores()
    return out
