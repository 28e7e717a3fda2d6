"""From rungs to what is kept: measured as stored, chosen, bundled, told."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anabranch import __version__
from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank, Table
from anabranch.core.route import Route
from anabranch.engine import linear, store
from anabranch.engine.backbone import LONGEST
from anabranch.engine.cache import digest
from anabranch.engine.choose import Rung, choose, climb, tested
from anabranch.engine.job import Head, Job
from anabranch.engine.lexical import bm25
from anabranch.engine.merging import taken
from anabranch.engine.passes import Routes, Slot, seeded
from anabranch.engine.run import Run
from anabranch.engine.train import Trainer
from anabranch.engine.workers import each
from anabranch.report.evidence import Watched, evidence, pace
from anabranch.report.gates import SAMPLE, named, usage
from anabranch.task.kind._base import Post
from anabranch.task.metrics import score

REFIT = 0.3  # of the learning rate, for the last short pass with the validation rows


def served(
    run: Run, banks: Sequence[Bank], name: str, job: Job, slots: Sequence[Mapping[str, Tensor]], mine: Mapping[str, Tensor],
    widest: int = 0, post: Post | None = None,
) -> Rung:  # fmt: skip
    """Slots, head and gate as they would be stored (rounded, frozen, small enough), and how they answer.

    ``slots``: numbers by table of every slot that the task's rows may take; ``mine``: those of its head and gate. ``widest``:
    numbers of the widest head beside shared slots, which are stored once and so in one form.
    """
    head = linear.rounded({n[5:]: t for n, t in mine.items() if n.startswith("head.")})
    trees = [frozen_tree(banks, rows) for rows in slots]
    limit, packed = run.plan.budget.kilobytes_per_task, [store.pack(tree, "bf16") for tree in trees]
    if limit and sum(map(store.size, packed)) / len(packed) + 2 * (widest or numbers_of(head)) > 1000 * limit:
        packed = [store.pack(tree, "int8") for tree in trees]
        run.notes.append(f"{job.name}: its delta is stored as int8 to stay near {limit:g} kilobytes")
    gate = store.pack(gate_tree(banks, mine), "bf16")
    ready, whole = [bank_like(bank, i, trees[0]) for i, bank in enumerate(banks)], [store.unpack(part) for part in packed]
    for i, bank in enumerate(ready):
        bank.add([store.cut(tree, i) for tree in whole])
        if bank.tables["gate"].n:
            bank.add_gate(store.cut(store.unpack(gate), i))
    adapted, routes = Adapted(run.backbone.f, ready, run.features.tail), candidates(len(slots), bool(gate))
    view = Watched(Slot(run.features, adapted, job.kind.words, routes), run.features)
    rung = climb(name, job, run.features, view, head, post)
    routed = banks is run.gated and run.gated is not run.banks
    rung.packed = {f"{e}.{n}": t for e, p in enumerate(packed) for n, t in p.items()} if routed else packed[0]
    rung.gate = gate

    def finish() -> None:
        tested(rung, job, run.features, view)
        some = [row[0] for row in job.parts["test"].units[:SAMPLE]]
        used = None if banks[0].gate.plain else usage(run.features, adapted, some, routes)
        shown = evidence(job, run.features, view, rung, run.plan.seed)
        run.extra.setdefault("evidence", {})[job.name, name] = shown | {"pace": view.pace, "gate": used}

    rung.finish = finish
    return rung


def candidates(slots: int, gated: bool) -> Routes:
    """Every row takes all of the slots, and row 1 of the gates."""

    def routes(owners: Sequence[int]) -> Route:
        ids = torch.arange(1, slots + 1).expand(len(owners), -1)
        return Route.to(ids, who=torch.ones(len(owners), dtype=torch.long) if gated else None)

    return routes


def frozen_tree(banks: Sequence[Bank], rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """A slot as stored, by "<bank>/<site>"."""
    tree: dict[str, Any] = {}
    for i, bank in enumerate(banks):
        slot = bank.tree({t: rows[f"{i}.{t}"] for t in bank.slot_tables})
        tree |= {f"{i}/{site}": p for site, p in bank.freeze(slot).items()}
    return tree


def gate_tree(banks: Sequence[Bank], rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """A task's gate tensors, by "<bank>/<site>"."""
    found = {i: bank.tables["gate"].split(rows[f"{i}.gate"]) for i, bank in enumerate(banks) if f"{i}.gate" in rows}
    return {f"{i}/{site}": p for i, tree in found.items() for site, p in tree.items()}


def numbers_of(head: Head) -> int:
    return sum(t.numel() for t in head.values())


def bank_like(bank: Bank, i: int, tree: dict[str, Any]) -> Bank:
    """An empty bank whose tables fit a frozen slot."""
    like = Bank(bank.delta, bank.gate, bank.sites, {}, bank.stage, bank.routes)
    like.adopt(store.cut(tree, i), {}, {})
    like.tables |= {"shared": bank.tables["shared"], "gate": Table(bank.tables["gate"].layout)}
    return like


def finish(run: Run) -> tuple[dict[str, Any], dict[str, Rung]]:
    """Chooses a rung per task, and writes the bundle."""
    folder, chosen = run.out / "bundle", {}
    cost = {"probe": 0, "shared": 1, "delta": 2}
    for name, job in run.jobs.items():
        chosen[name] = run.few.get(name) or choose(job, sorted(run.rungs[name], key=lambda r: cost[r.name]), run.plan.seed)
    refit(run, chosen)
    for _ in each([r.finish for rungs in run.rungs.values() for r in rungs if r.finish], lambda finish: finish()):
        pass
    records = {}
    for name, rung in chosen.items():
        records[name] = store.save_task(folder, record(run, run.jobs[name], rung), rung.packed if rung.name == "delta" else {},
                                        rung.head, rung.post, run.tasks[name].corpus, rung.gate)  # fmt: skip
    gated = run.gated is not run.banks
    users = [name for name, rung in chosen.items() if rung.name == "shared"]
    joint = {name: rung for name in run.jobs for rung in run.rungs[name] if rung.name == "shared"}
    library = kept(run, users) and bool(joint)
    slot = next(iter(joint.values())).packed if users or library else {}
    own = next((r.packed for r in chosen.values() if r.name == "delta"), {} if gated else slot)
    banks = cards(folder, run.banks, own)
    shared: dict[str, Any] = {}
    if users or library:
        shared = {"file": store.put(folder, {f"slot/{n}": t for n, t in slot.items()}), "tasks": users}
    whole = banks
    if shared and gated:
        first = {n.partition(".")[2]: t for n, t in slot.items() if n.startswith("0.")}
        shared |= {"bank": len(banks), "slots": 1 + max(int(n.partition(".")[0]) for n in slot)}
        whole = banks + cards(folder, run.gated, first)
    experts: dict[str, Any] = {}
    if library:
        entries = {name: record(run, run.jobs[name], rung) | {"expert": i, "of": records[name]["file"]}
                   for i, (name, rung) in enumerate(joint.items(), 1)}  # fmt: skip
        entries = {name: store.save_task(folder, entry, {}, joint[name].head, joint[name].post, run.tasks[name].corpus,
                                         joint[name].gate) for name, entry in entries.items()}  # fmt: skip
        experts = {"experts": {"banks": whole, "shared": shared | {"tasks": list(joint)}, "tasks": entries}}
    bundle = {
        "backbone": {"id": run.backbone.id, "fingerprint": run.backbone.fingerprint},
        "dtype": str(run.backbone.dtype)[6:],
        "banks": whole if users else banks,
        "tasks": records,
        "shared": shared if users else None,
        "made": {
            "anabranch": __version__,
            "torch": torch.__version__,
            "seed": run.plan.seed,
            "plan": run.plan.model_dump(mode="json"),
        },
    } | experts
    store.save(folder, bundle)
    return bundle, chosen


def kept(run: Run, users: Sequence[str]) -> bool:
    """Whether the bundle also says how each task answers through the gate, whatever it answers from: its ``experts``.

    They are a bundle of their own beside the tasks, for :class:`anabranch.engine.library.Library`: the task's slot with its
    key, and the head that was trained with these. Of slots that were trained one a task, when they are stored as some task
    answers through the gate, or when their keys were learned, which nobody could read from the slots again.
    """
    if run.gated is run.banks or not run.gated[0].gate.library:
        return False
    return bool(users or (run.gated[0].gate.trained and run.gated[0].tables["keys"].n))


def refit(run: Run, chosen: dict[str, Rung]) -> None:
    """Once chosen, probes and own slots also learn from the validation rows; settled numbers and validation scores stay.

    A head is solved anew. A slot goes on for one short pass over the validation rows and as many training rows.
    """
    heads = {n: r for n, r in chosen.items() if r.head and len(run.jobs[n].parts["valid"])}
    probes, todo = [n for n, r in heads.items() if r.name == "probe"], []

    def solved(name: str) -> Rung:
        job, rung = run.jobs[name], chosen[name]
        view, head = linear.frozen(run.features, job), linear.again(job, run.features, rung.how)
        return tested(climb("probe", job, run.features, view, head, rung.post), job, run.features, view)

    for name, new in zip(probes, each(probes, solved), strict=True):
        replaced(run, chosen, name, new)
    for name, rung in heads.items():
        if rung.name == "delta" and name not in run.few:
            job = run.jobs[name]
            both, first = linear.whole(job), len(job.parts["train"])
            order = torch.randperm(first, generator=seeded(run.plan.seed, name, "refit")).tolist()
            rows = [*range(first, len(both)), *order[: len(both) - first]]
            parts = dict(job.parts) | {"train": taken(both, rows), "valid": taken(both, [])}
            todo.append((replace(job, parts=parts), rung.head, 1, run.key(job, "refit", digest(rung.valid))))
    if todo:
        begin = {job.name: {n: t for n, t in run.own_slots[job.name].items() if not n.startswith("head.")} for job, *_ in todo}
        trainer = Trainer(run.features, run.banks, [REFIT * r for r in run.rates], run.work / "train", run.plan.seed, begin=begin)
        best = {learner.job.name: learner.best for learner in trainer.run(todo)}
        found = each(list(best), lambda n: served(run, run.banks, "delta", run.jobs[n], [best[n]], best[n], post=chosen[n].post))
        for name, rung in zip(best, found, strict=True):
            replaced(run, chosen, name, rung)


def replaced(run: Run, chosen: dict[str, Rung], name: str, new: Rung) -> None:
    old = chosen[name]
    new.valid, new.how = old.valid, old.how
    run.rungs[name][run.rungs[name].index(old)] = chosen[name] = new


def cards(folder: Path, banks: Sequence[Bank], packed: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Cards of banks whose slots are stored as ``packed`` is, with the file of what their slots share."""
    tree, out = store.unpack(packed), []
    for i, bank in enumerate(banks):
        card = store.bank_card(bank_like(bank, i, tree) if tree else bank)
        common = bank.tables["shared"]
        file = store.put(folder, store.pack(common.split(common.data[1]), "bf16")) if common.n else None
        out.append(card | ({"file": file} if file else {}))
    return out


def record(run: Run, job: Job, rung: Rung) -> dict[str, Any]:
    kind, task = job.kind, run.tasks[job.name]
    common = {"common": int(kind.constant(job.parts["train"].y).argmax())} if kind.words else {}
    return {
        "kind": task.kind, "labels": kind.labels, "two": kind.two, "mean": kind.mean, "std": kind.std, "metric": job.metric,
        "rung": rung.name, "valid": rung.valid, "test": rung.test, "max_length": task.max_length or LONGEST,
        "description": task.description,
    } | common  # fmt: skip


def results_of(run: Run, chosen: dict[str, Rung], bundle: dict[str, Any], total: float) -> dict[str, Any]:
    tasks, found, slots = {}, run.extra.pop("evidence", {}), bundle["shared"]
    slow = pace(run.features, [u for job in run.jobs.values() for row in job.parts["test"].units for u in row])
    for name, job in run.jobs.items():
        rung, by = chosen[name], {r.name: r for r in run.rungs[name]}
        own = part_of(run, rung, slots)
        if not job.kind.speaks:  # f would have to say it all again
            view = linear.frozen(run.features, job)
            found[name, "probe"] = evidence(job, run.features, view, by["probe"], run.plan.seed)
        shown = found.get((name, rung.name), {})
        tasks[name] = {
            "kind": run.tasks[name].kind, "metric": job.metric, "n_train": len(job.parts["train"]),
            "n_valid": len(job.parts["valid"]), "n_test": len(job.parts["test"]),
            "majority": linear.majority(job, job.parts["test"]),
            "probe": by["probe"].test, "delta": by["delta"].test if "delta" in by else None,
            "shared": by["shared"].test if "shared" in by else None, "chosen": rung.name, "valid": rung.valid, "test": rung.test,
            "kilobytes": round((own + 2 * numbers_of(rung.head) + aside(bundle, rung, by, len(run.jobs))) / 1000, 3),
            "seconds": round(run.own[name], 3), "curve": run.curves.get(name, []), "warnings": run.tasks[name].warnings,
            "counts": run.tasks[name].counts,
            "bm25": lexical(run, job),
            "rungs": {r.name: {"valid": r.valid, "test": r.test} | cost(run, job, r, found.get((name, r.name), {}), slow, slots)
                      for r in run.rungs[name]},
            "labels": job.kind.labels, "confusion": shown.get("confusion"), "doubtful": shown.get("doubtful"),
            "wrong": shown.get("wrong", []),
        }  # fmt: skip
    used = {name: w.tolist() for name in tasks if (w := found.get((name, "shared"), {}).get("gate")) is not None}
    if used:
        names = named(len(next(iter(used.values()))), list(run.jobs), run.gated[0].gate.library)
        measure = f"mean weight of each slot over the tokens of up to {SAMPLE} test texts and over all sites"
        table = [[round(v, 4) for v in row] for row in used.values()]
        run.extra["gates"] = {"measure": measure, "tasks": list(used), "slots": names, "weights": table}
    return {
        "format": 1, "seed": run.plan.seed, "backbone": run.backbone.id, "dtype": str(run.backbone.dtype)[6:],
        "seconds": round(total, 3), "stages": {n: round(s, 3) for n, s in run.took.items()}, "tasks": tasks,
        "machine": run.machine | {"system": platform.platform()},
        "versions": {"anabranch": __version__, "torch": torch.__version__},
        "notes": sorted(set(run.notes)), **run.extra,
    }  # fmt: skip


def aside(bundle: Mapping[str, Any], rung: Rung, by: Mapping[str, Rung], tasks: int) -> float:
    """Bytes of a task's expert that no rung that answers has stored: its head, and where no task uses the slots its own."""
    if "experts" not in bundle or rung.name == "shared":
        return 0.0
    slots = 0.0 if bundle["shared"] else store.size(by["shared"].packed) / tasks
    return slots + 2 * numbers_of(by["shared"].head) + store.size(by["shared"].gate)


def part_of(run: Run, rung: Rung, slots: Any) -> float:
    """Bytes of a rung's slots that are the task's: shared ones are divided, those of earlier tasks were there before."""
    if rung.name == "shared" and run.earlier:
        return 0.0
    users = max(1, len(slots["tasks"])) if slots and rung.name == "shared" else 1
    return store.size(rung.packed) / users


def cost(run: Run, job: Job, rung: Rung, seen: dict[str, Any], slow: float | None, slots: Any) -> dict[str, Any]:
    """error: standard error of the test score; kilobytes: as stored; seconds: of one row, f's own part included."""
    size = (part_of(run, rung, slots) + 2 * numbers_of(rung.head)) / 1000
    rows, took = job.parts["test"].units, None
    if rows and slow is not None:
        tokens = sum(run.features.length(u) for row in rows for u in row) / len(rows)
        above = seen.get("pace")  # under the slot, from block tail on
        took = tokens * (slow if above is None else slow * run.features.tail / run.backbone.blocks + above)
    return {"error": seen.get("error"), "kilobytes": round(size, 3), "seconds": took}


def lexical(run: Run, job: Job) -> float | None:
    """BM25's test score of a retrieval task, in its main metric; None for other kinds."""
    task = run.tasks[job.name]
    if not task.corpus or not len(task.test):
        return None
    return score(job.metric, task.test.label, bm25(task.test.text, task.corpus))
