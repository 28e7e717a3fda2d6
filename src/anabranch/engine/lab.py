"""The laboratory: what a claim compares methods with. Text tasks over MiniLM, ways to train and merge on them, toys.

A claim is ``claims/<row_id>.py`` with ``claim(lab) -> {way: {case: number}}``. Everything slow is kept on disk by a hash of
what made it, so that a claim which was killed goes on, and claims share their baselines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.names import make
from anabranch.core.route import Route
from anabranch.core.site import Site, find
from anabranch.engine import linear, small, store
from anabranch.engine.backbone import Backbone, backbone_of
from anabranch.engine.cache import cache_dir, checksum, digest, recall, write_tensors
from anabranch.engine.features import Features
from anabranch.engine.job import Head, Job, fresh, job_of, spelled
from anabranch.engine.linear import View
from anabranch.engine.merging import Merged, merged
from anabranch.engine.passes import Routes, Slot, seeded
from anabranch.engine.profile import profile
from anabranch.engine.recipe import jointly, unpacked
from anabranch.engine.seen import delta_for, seen
from anabranch.engine.share import over
from anabranch.engine.stages import stages
from anabranch.engine.train import Trainer
from anabranch.errors import InputError
from anabranch.task.data import Task, load_task
from anabranch.task.plan import TaskSpec

ROWS, TEST, EPOCHS, BLOCKS = 512, 400, 3, 2  # of a task; passes; blocks of f from its end that deltas change
EXPERT = {"dense": {}, "lr": 3e-4}
KEYED = 6  # passes in which the key of a finished slot learns: some 90 steps of 512 rows
# tasks of --data in the order in which claims take them: small label sets and large ones, sentiment, questions, intents
CORE = ("trec6", "sst2", "subj", "cr", "snips_intent", "hwu64_scenario", "clinc150_domain", "tweet_emotion", "senti4sd",
        "sms_spam", "sib200_topic_eng", "uci_sentiment_yelp", "uci_sentiment_imdb", "uci_sentiment_amazon", "banking77",
        "clinc150_intent", "hwu64_intent", "isarcasm", "goemotions", "indonlu_smsa")  # fmt: skip
OWN = ("area", "library", "sections", "arity", "params", "same", "which")  # of the docstring suite


@dataclass
class Lab:
    """One seed's laboratory. ``data``: a folder of task folders, else the docstring suite."""

    seed: int = 0
    data: Path | None = None
    home: Path = field(default_factory=lambda: cache_dir() / "lab")

    @property
    def rng(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def tasks(self, tasks: int | Sequence[str] = 8, rows: int = ROWS, test: int = TEST, **more: Any) -> list[Task]:
        """By name, or the first so many of those that there are; ``rows`` drawn by the seed, the test rows always the same.

        A tenth of the rows is held out for validation. ``more``: keys of a plan's task.
        """
        root = self.data or self.suite_folder()
        names = (
            list(tasks)
            if not isinstance(tasks, int)
            else [n for n in (CORE if self.data else OWN) if (root / n).is_dir()][:tasks]
        )
        out = []
        for name in names:
            task = load_task(name, TaskSpec(data=str(root / name), limit=rows, **more), seed=self.seed)
            out.append(replace(task, test=task.test.take(list(range(min(test, len(task.test)))))))
        if not out:
            raise InputError(f"{root} holds none of the tasks that claims use: {', '.join(CORE[:4])}, ...")
        return out

    def suite_folder(self) -> Path:
        from anabranch.world.docstrings import docstrings

        folder = self.home / "docstrings"
        docstrings(folder)
        return folder

    def suite(self, tasks: int | Sequence[str] | Sequence[Task] = 8, backbone: str = "minilm", blocks: int | None = BLOCKS,
              **more: Any) -> "Suite":  # fmt: skip
        """Tasks ready to be trained on; ``blocks``: how many of f's last ones deltas may change (None: all of f)."""
        there = not isinstance(tasks, int) and tasks and isinstance(tasks[0], Task)
        made: Sequence[Any] = tasks if there else self.tasks(tasks, **more)  # type: ignore[arg-type, assignment]
        return Suite.of(self, made, backbone_of(backbone, profile()["dtype"]), blocks)

    def small(self, name: str, **more: Any) -> Path:
        """A small model trained here, once: masked_lm, causal_lm, vit or cnn of :mod:`anabranch.engine.small`."""
        return Path(getattr(small, name)(self.home / "small", **more))

    def experts(self, n: int = 8, kind: Any = EXPERT, **more: Any) -> "Trained":
        """n tasks tuned alone from one f under the heads of their labels' names: what merges start from."""
        return self.suite(n, **more).named().own(kind)


@dataclass
class Suite:
    """Tasks over one frozen f: features, jobs, and a linear head per task."""

    lab: Lab
    features: Features
    jobs: dict[str, Job]
    heads: dict[str, Head]
    blocks: int
    fixed: bool = False  # whether heads stay as they are

    @classmethod
    def of(cls, lab: Lab, tasks: Sequence[Task], backbone: Backbone, blocks: int | None) -> "Suite":
        depth = 0 if blocks is None else backbone.blocks - blocks
        features = Features(backbone, lab.home / "features", depth)
        jobs = {task.name: job_of(task, features) for task in tasks}
        features.run()
        suite = cls(lab, features, jobs, {}, backbone.blocks - depth)
        for name, job in jobs.items():
            saved = lab.home / "probe" / f"{suite.key([], [], name, depth)}.safetensors"
            kept = recall(saved)
            suite.heads[name] = kept[0] if kept else linear.probe(job, features)[0]
            if not kept:
                write_tensors(saved, suite.heads[name])
        return suite

    @property
    def f(self) -> Any:
        return self.features.backbone.f

    def named(self, sharpness: float = 10.0) -> "Suite":
        """The same tasks with heads that nobody trained: cosines with the features of the labels' names.

        As the frozen text heads that merges are published with (Ilharco et al. 2023, arXiv:2212.04089, over CLIP).
        """
        b, heads = self.features.backbone, {}
        names = Features(b, self.features.folder, self.features.tail)
        for name, job in self.jobs.items():
            words = spelled(job.kind.labels)
            x = self.features.vectors[[u for row in job.parts["train"].units for u in row]][:, : b.d]
            head = fresh(len(words), x, b.d)
            said = names.add(b.tokens(words))
            names.run()
            e = names.vectors[said][:, : b.d] - head["mean"]
            heads[name] = linear.rounded(head | {"W": sharpness * e / e.norm(dim=1, keepdim=True)})
        return replace(self, heads=heads, fixed=True)

    def only(self, *names: str) -> "Suite":
        """The same features, fewer tasks."""
        return replace(self, jobs={n: self.jobs[n] for n in names}, heads={n: self.heads[n] for n in names})

    def key(self, banks: Sequence[Bank], rates: Sequence[float], name: str, *more: Any) -> str:
        """A hash of all that a task's numbers depend on."""
        job = self.jobs[name]
        ids = self.features.tokens
        rows = {s: ([[ids[u].ids for u in row] for row in p.units], str(p.labels)) for s, p in job.parts.items()}
        cards = [(store.bank_card(bank), digest(bank.tables["shared"].data.tolist())) for bank in banks]
        if self.fixed:
            more = (*more, checksum(self.heads[name]))
        b = self.features.backbone
        return digest(
            name, job.metric, vars(job.kind), digest(rows), self.lab.seed, b.fingerprint, str(b.dtype), cards, rates, more
        )

    def banks(
        self, delta: Any, gate: Any = "by_task", routes: int = 1, lr: float | None = None
    ) -> tuple[list[Bank], list[float]]:
        """Empty banks of a plan's delta entries, in the blocks that may change; and their learning rates."""
        banks, rates = [], []
        for i, entry in enumerate(delta if isinstance(delta, list) else [delta]):
            entry = {entry: {}} if isinstance(entry, str) else dict(entry) if isinstance(entry, Mapping) else entry
            at, rate = (entry.pop(k, None) for k in ("at", "lr")) if isinstance(entry, dict) else (None, None)
            made = delta_for(self.f, entry)
            sites = self.sites(at or made.at)
            banks.append(Bank.make(made, make("gate", gate), sites, seeded(self.lab.seed, "bank", i), None, 0, routes))
            rates.append(rate or lr or made.lr)
        return banks, rates

    def sites(self, at: Any) -> list[Site]:
        sites = find(self.f, at)
        return [s for s in sites if self.features.tail <= s.depth < self.features.backbone.blocks] or sites

    def trainer(self, banks: Sequence[Bank], rates: Sequence[float], **more: Any) -> Trainer:
        learning = more.pop("learning", {"own", "keys", "gate", *(() if self.fixed else ("head",))})
        return Trainer(self.features, banks, rates, self.lab.home / "train", self.lab.seed, learning=learning, **more)

    # ---- ways to answer ------------------------------------------------------------------------------------------
    def probe(self) -> dict[str, float]:
        """Scores of the linear heads on f's own features."""
        return {name: self.score(name, linear.frozen(self.features, job), self.heads[name]) for name, job in self.jobs.items()}

    def own(self, delta: Any, epochs: int = EPOCHS, lr: float | None = None, common: Sequence[Bank] = (),
            begin: Mapping[str, Mapping[str, Tensor]] | None = None, **more: Any) -> "Trained":  # fmt: skip
        """Every task trains its own slot and head.

        ``common``: banks whose shared numbers hold for these; ``begin``: tables of a task's slot where it does not begin fresh.
        """
        banks, rates = self.banks(delta, lr=lr)
        for bank, learned in zip(banks, common, strict=bool(common)):
            bank.tables["shared"] = learned.tables["shared"]
        trainer, todo = self.trainer(banks, rates, begin=begin, **more), []
        for n, job in self.jobs.items():
            start = [digest({t: row.tolist() for t, row in begin[n].items()})] if begin else []
            todo.append((job, self.heads[n], epochs, self.key(banks, rates, n, epochs, sorted(more), "own", *start)))
        found = {learner.job.name: learner for learner in trainer.run(todo)}
        slots = {n: {k: t for k, t in found[n].best.items() if not k.startswith("head.")} for n in self.jobs}
        return Trained(self, banks, rates, [slots[n] for n in self.jobs], {n: found[n].head_of(found[n].best) for n in self.jobs},
                       losses={n: [e.get("loss", float("nan")) for e in found[n].curve] for n in self.jobs})  # fmt: skip

    def shared(self, delta: Any, gate: Any = "by_task", balance: Any = "mean", slots: int | None = None, epochs: int = EPOCHS,
               lr: float | None = None) -> "Trained":  # fmt: skip
        """All tasks train the same slots (as many as the gate says) and each its own head and row of the gate.

        Where a balance or the gate trains slots for groups of tasks apart, each task takes those of its group.
        """
        gate = make("gate", gate)
        slots = slots or (1 if gate.plain else int(getattr(gate, "slots", 4)))
        banks, rates = self.banks(delta, gate, slots, lr)
        trainer = self.trainer(banks, rates)
        key = digest([self.key(banks, rates, n, epochs, "shared") for n in self.jobs], str(balance), str(gate), slots)
        pairs = [(job, self.heads[n]) for n, job in self.jobs.items()]
        groups = jointly(trainer, pairs, epochs, balance, key, slots=slots, apart=gate.groups(list(self.jobs)))
        rows, takes, learners = unpacked(groups, slots, banks)
        heads = {n: learners[n].head for n in self.jobs}
        gates = {n: {k: t for k, t in learners[n].theta.items() if k.endswith(".gate")} for n in self.jobs}
        return Trained(self, banks, rates, rows, heads, takes, gates)

    def over(self, library: "Trained", gate: Any, epochs: int = EPOCHS, learn: bool = True) -> "Trained":
        """This suite's tasks routed over the slots of ``library``, which stay as they are; heads (and gates) learn on them.

        The keys of a slot are made, and where the gate says so learned, from the rows of the slot's own task in ``library``.
        ``learn``: else the heads are the library's own where it has them, or the probe's.
        """
        gate, k = make("gate", gate), len(library.slots)
        banks = [replace_gate(bank, gate, k) for bank in library.banks]
        slots = library.keyed(banks, gate)
        stack = {n: torch.stack([slot[n] for slot in slots]) for n in slots[0]}
        heads, gates = {n: library.heads.get(n, head) for n, head in self.heads.items()}, dict[str, dict[str, Tensor]]()
        if not learn and not gate.trained:
            gates = {n: {f"{i}.gate": bank.tables["gate"].row(bank.gates(seeded(self.lab.seed, n, "gate", i)))
                         for i, bank in enumerate(banks)} for n in self.jobs}  # fmt: skip
        elif learn or any(bank.tables["gate"].n for bank in banks):
            trainer = self.trainer(banks, library.rates, routes=over(k), library=stack)
            whole = digest(*(digest(t.tolist()) for t in stack.values()))
            todo = [
                (job, heads[n], epochs, self.key(banks, library.rates, n, epochs, "over", whole)) for n, job in self.jobs.items()
            ]
            found = {learner.job.name: learner for learner in trainer.run(todo)}
            heads = {n: learner.head_of(learner.best) for n, learner in found.items()}
            gates = {n: {t: v for t, v in m.best.items() if t.endswith(".gate")} for n, m in found.items()}
        return Trained(self, banks, library.rates, slots, heads, {n: list(range(k)) for n in self.jobs}, gates)

    def score(self, name: str, view: View, head: Head, split: str = "test") -> float:
        """The main metric of one task under a view."""
        job = self.jobs[name]
        index = linear.index_of(job, list(job.documents), self.features, view) if job.documents else None
        found = linear.answers(job, job.parts[split], self.features, view, head, {}, index)
        value = linear.measure(job, job.parts[split], found)
        return float("nan") if value is None else value

    def refit(self, view_of: Any) -> dict[str, Head]:
        """Linear heads fitted anew on the features of ``view_of(name)``."""
        return {name: linear.probe(job, self.features, view_of(name))[0] for name, job in self.jobs.items()}


@dataclass
class Trained:
    """Slots (numbers by table), a head per task, and which slots a task's rows take (by default its own)."""

    suite: Suite
    banks: list[Bank]
    rates: list[float]
    slots: list[dict[str, Tensor]]
    heads: dict[str, Head]
    takes: dict[str, list[int]] = field(default_factory=dict)
    gates: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)  # mean training loss of each pass

    @property
    def numbers(self) -> int:
        """Trained numbers of one slot."""
        return sum(bank.tables["own"].n for bank in self.banks)

    @property
    def bytes(self) -> int:
        """Of one slot as stored (frozen, floats in bf16)."""
        from anabranch.engine.result import frozen_tree

        return store.size(store.pack(frozen_tree(self.banks, self.slots[0]), "bf16"))

    def filled(self) -> list[Bank]:
        """Banks that hold the slots, and the tasks' gate rows in their order."""
        out = []
        for i, bank in enumerate(self.banks):
            made = replace(bank, tables={n: t.copy() for n, t in bank.tables.items()})
            made.add([bank.tree({t: slot[f"{i}.{t}"] for t in bank.slot_tables}) for slot in self.slots])
            for name in self.suite.jobs if bank.tables["gate"].n else ():
                made.add_gate(bank.tables["gate"].split(self.gates[name][f"{i}.gate"]))
            out.append(made)
        return out

    def routes(self, name: str) -> Routes:
        number = list(self.suite.jobs).index(name)
        ids = [k + 1 for k in self.takes.get(name, [number])]
        who = number + 1 if any(bank.tables["gate"].n for bank in self.banks) else None
        return lambda owners: Route.to(torch.tensor(ids).expand(len(owners), -1),
                                       who=None if who is None else torch.full((len(owners),), who))  # fmt: skip

    def view(self, name: str, banks: Sequence[Bank] | None = None) -> Slot:
        s = self.suite
        adapted = Adapted(s.f, self.filled() if banks is None else banks, s.features.tail)
        return Slot(s.features, adapted, s.jobs[name].kind.words, self.routes(name))

    def scores(self, split: str = "test") -> dict[str, float]:
        """The main metric of each task."""
        banks = self.filled()
        return {n: self.suite.score(n, self.view(n, banks), self.heads[n], split) for n in self.suite.jobs}

    def keyed(self, banks: Sequence[Bank], gate: Any) -> list[dict[str, Tensor]]:
        """The slots with the gate's keys, made from each slot and its task, and, where the gate does, learned by it alone."""
        names, out = list(self.suite.jobs), []
        if not any(bank.tables["keys"].n for bank in banks):  # then slots may be no single task's
            return [slot | {n: torch.zeros(0) for n in slot if n.endswith(".keys")} for slot in self.slots]
        for name, slot in zip(names, self.slots, strict=True):
            own = {n: t for n, t in slot.items() if not n.endswith(".keys")}
            for i, bank in enumerate(banks):
                tree = bank.tree({t: own[f"{i}.{t}"] for t in bank.slot_tables if t != "keys"})
                asked, rng = seen(self.suite.features, bank, self.suite.jobs[name]), seeded(self.suite.lab.seed, name, "key", i)
                keys = {s.key: gate.key(s, tree[s.key], rng, (asked or {}).get(s.key)) for s in bank.sites}
                own[f"{i}.keys"] = bank.tables["keys"].row(keys)
            out.append(own)
        if gate.learner() is gate:
            return out
        alone = [replace(bank, gate=gate.learner()) for bank in banks]
        begin = dict(zip(names, out, strict=True))
        trainer = self.suite.trainer(alone, self.rates, learning={"keys"}, begin=begin, patience=KEYED)
        key = digest([digest(t.tolist()) for slot in out for t in slot.values()])
        label = (KEYED, "keys", key)
        todo = [(job, self.heads[n], KEYED, self.suite.key(alone, self.rates, n, *label)) for n, job in self.suite.jobs.items()]
        found = {learner.job.name: learner.theta for learner in trainer.run(todo)}
        return [{n: found[name][n] for n in slot} for name, slot in zip(names, out, strict=True)]

    def stages(self, epochs: int = EPOCHS) -> Any:
        """What a recipe trains with, see :func:`anabranch.engine.stages.stages`."""
        s = self.suite
        return stages(s, self.banks[0], self.rates[0], [(job, self.heads[n]) for n, job in s.jobs.items()], epochs)

    # ---- merges --------------------------------------------------------------------------------------------------
    def merged(self, method: Any, few: int = 64, split: str = "valid") -> Merged:
        """A merge of any form over the tasks' own slots; those with data see at most ``few`` rows of each task's ``split``."""
        s = self.suite
        (bank,) = self.filled()
        heads = [self.heads[n] for n in s.jobs]
        more: Any = {"few": few, "seed": s.lab.seed, "split": split, "train": self.stages()}
        return merged(s.features, list(s.jobs.values()), heads, bank, method, **more)

    def merge_scores(
        self, method: Any, split: str = "test", few: int = 64, heads: Mapping[str, Head] | None = None
    ) -> dict[str, float]:
        """Each task's score under the merge, with its own head."""
        return self.under(self.merged(method, few), split, heads)

    def under(self, made: Merged, split: str = "test", heads: Mapping[str, Head] | None = None) -> dict[str, float]:
        s, out = self.suite, {}
        adapted = made.adapted(s.f, s.features.tail)
        for j, name in enumerate(list(s.jobs)[: len(made.slots)]):
            view = made.view(s.features, adapted, s.jobs[name], j)
            out[name] = s.score(name, view, (heads or self.heads)[name], split)
        return out

    def best_scale(self, method: str, scales: Sequence[float], key: str = "scale", **settings: Any) -> dict[str, float]:
        """Test scores of a merge at the scale with the highest mean validation score."""

        def valid(scale: float) -> float:
            found = self.merge_scores({method: {key: scale, **settings}}, "valid")
            return sum(found.values()) / len(found)

        best = max(scales, key=valid)
        return self.merge_scores({method: {key: best, **settings}})


def replace_gate(bank: Bank, gate: Any, routes: int) -> Bank:
    """The same delta and sites under another gate, without slots."""
    made = Bank.make(bank.delta, gate, bank.sites, seeded(0, "gate"), None, bank.stage, routes)
    made.tables["shared"] = bank.tables["shared"]
    return made
