"""``Model``: a bundle that answers. One forward pass serves rows of many tasks; the blocks below the deltas run once per text."""

import logging
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank
from anabranch.core.delta import Params
from anabranch.core.route import Route
from anabranch.engine.backbone import Backbone, Tokens, backbone_of
from anabranch.engine.features import Features
from anabranch.engine.given import dicts, missing, rows_of, told_of
from anabranch.engine.job import Head, apply, joined
from anabranch.engine.linear import ranked, speak
from anabranch.engine.passes import encode
from anabranch.engine.store import Record, bank_of, corpus_of, cut, get, open_bundle, parts_of, readable, same_backbone, unpack
from anabranch.errors import InputError, WorkError, nearest
from anabranch.merge.surgery import corrected
from anabranch.merge.tangent import Linearised
from anabranch.task import kind as kinds
from anabranch.task.kind import Kind
from anabranch.task.kind._base import Post
from anabranch.task.metrics import score

log = logging.getLogger("anabranch")


kind_of = cache(kinds.find)  # it looks into the folder of kinds each time


class Served:
    """One task of a bundle: its slot (0: f itself), head, settled numbers, and for retrieval the index of its corpus."""

    def __init__(self, name: str, record: Mapping[str, Any], slot: int, head: Head, post: Post, corpus: Mapping[str, str] | None,
                 after: Params | None = None) -> None:  # fmt: skip
        self.name, self.record, self.slot, self.head, self.post, self.corpus = name, record, slot, head, post, corpus
        self.after = after or {}  # corrects its features behind f
        self.kind: Kind = kind_of(record["kind"])(record["labels"], record["two"], record["mean"], record["std"])
        self.number = 0  # of its routes in the model
        self.sound = True  # all its numbers are finite
        self.index: Tensor | None = None


Asked = list[tuple[Served, list[int]]]  # tasks, and the numbers of the rows that each can read


class Model:
    """A loaded bundle. ``model.predict("intent", [{"text": ...}])``; ``model.tasks`` has each task's record.

    ``predict``, ``answers`` and ``evaluate`` may be called from any thread; calls wait for each other.
    """

    def __init__(self, folder: Path, bundle: Mapping[str, Any], backbone: Backbone) -> None:
        self.folder, self.bundle, self.backbone, self._lock = folder, bundle, backbone, threading.RLock()
        self.banks: list[Bank] = [bank_of(entry, backbone.f) for entry in bundle["banks"]]
        for bank, entry in zip(self.banks, bundle["banks"], strict=True):
            bank.to(backbone.dtype)  # before any slot: many would otherwise lie in memory in fp32 as well
            if entry.get("file"):
                bank.tables["shared"].put(1, unpack(get(folder, entry["file"])))
        self.served: dict[str, Served] = {}
        shared = bundle.get("shared") or {}
        first, many = shared.get("bank", 0), shared.get("slots", 0)  # where a gate routes over slots of its own, and how many
        whole = get(folder, shared["file"]) if shared else {}
        whole = {n.partition("/")[2]: t for n, t in whole.items()}
        users: dict[str, int] = {}
        self._paths = [[((0,) * max(1, many if first and i >= first else 1), 0) for i in range(len(self.banks))]]
        for name, record in bundle["tasks"].items():
            Record.model_validate(record)
            packed, head, post, gate, after = parts_of(folder, record["file"])
            path, slot = list(self._paths[0]), 0
            if record["rung"] == "shared" and many:
                gates = unpack(gate)
                for i in range(first, len(self.banks)):
                    who = self.banks[i].add_gate(cut(gates, i - first)) if self.banks[i].tables["gate"].n else 0
                    path[i] = (tuple(range(1, many + 1)), who)
            elif packed or record["rung"] == "shared":
                key = f"task {name}" if packed else "shared"
                if key not in users:
                    users[key] = 1 + len(users)
                    tree = unpack(packed or whole)
                    for i, bank in enumerate(self.banks[: first or None]):
                        bank.add([cut(tree, i)])
                slot = users[key]
                path[: first or None] = [((slot,), 0)] * (first or len(self.banks))
            self._paths.append(path)
            corpus = corpus_of(folder, record["corpus"]) if record.get("corpus") else None
            self.served[name] = Served(name, record, slot, head, post, corpus, after)
            self.served[name].number = len(self._paths) - 1
        experts = [unpack({n.partition(".")[2]: t for n, t in whole.items() if n.startswith(f"{e}.")}) for e in range(many)]
        for i, bank in enumerate(self.banks[first:] if first else ()):
            bank.add([cut(tree, i) for tree in experts])
        self.tail = max(0, min((s.depth for bank in self.banks for s in bank.sites), default=0))
        self.adapted: Any = Adapted(backbone.f, self.banks, self.tail)
        if bundle.get("tangent"):
            (_,), self.adapted = self.banks, Linearised(self.adapted)  # ValueError for several banks
        self._examine()

    def _examine(self) -> None:
        """Marks the tasks whose slots, gate or head hold NaN or infinity, and names them; the others answer as ever."""
        whole = [[t.data.isfinite().flatten(1).all(1).tolist() for t in bank.tables.values()] for bank in self.banks]
        for served in self.served.values():
            heads = all(bool(t.isfinite().all()) for p in (served.head, served.post, served.after) for t in p.values())
            slots = all(
                held[row if name == "gate" else 1 if name == "shared" else slot]
                for bank, tables, (ids, row) in zip(self.banks, whole, self._paths[served.number], strict=True)
                for name, held in zip(bank.tables, tables, strict=True)
                for slot in ids
                if slot
            )
            served.sound = heads and slots
            if not served.sound:
                log.warning("task %s: its stored delta or head holds NaN or infinity, so it does not answer", served.name)

    def routes(self, numbers: Sequence[int]) -> list[Route | None]:
        """Of each bank, for rows of the tasks with these numbers (0: f itself); None where no row takes a slot."""
        out: list[Route | None] = []
        for i, bank in enumerate(self.banks):
            ids, who = zip(*(self._paths[n][i] for n in numbers), strict=True)
            gates = torch.tensor(who) if bank.tables["gate"].n else None
            out.append(Route.to(torch.tensor(ids), who=gates) if any(map(any, ids)) else None)
        return out

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        return dict(self.bundle["tasks"])

    def __repr__(self) -> str:
        rungs = ", ".join(f"{n} ({s.record['kind']}, {s.record['rung']})" for n, s in list(self.served.items())[:8])
        return (
            f"Model({self.bundle['backbone']['id']}, {len(self.served)} tasks: {rungs}{', ...' if len(self.served) > 8 else ''})"
        )

    def task(self, name: str) -> Served:
        if name not in self.served:
            raise InputError(f"no task {name!r} in this bundle{nearest(name, self.served)}")
        return self.served[name]

    def able(self, name: str) -> Served:
        """A task that can answer. WorkError where its numbers are not finite."""
        served = self.task(name)
        if not served.sound:
            fix = "fit it again, or restore the bundle from a copy; the other tasks are not touched"
            raise WorkError(f"task {name}: its stored delta or head holds NaN or infinity: {fix}")
        return served

    def predict(self, task: str | Sequence[str], rows: Any) -> list[dict[str, Any]]:
        """One answer per row: ``{"prediction", "scores"}``; for several tasks or ``all``, ``{task: answer or None}``.

        ``rows``: a list of texts, of ``{"text", "text_b"?, "tokens"?, "choices"?}``, or a pandas frame of these columns.

        None where a row lacks what the task reads. InputError names the row and what is missing when one task is asked,
        WorkError a task whose stored numbers are not finite; ``all`` leaves such a task out.
        """
        if isinstance(rows, (str, Mapping)):
            raise InputError("rows is a list of texts or of {'text': ...}, got a single one: put it in [ ]")
        records = rows.to_dict("records") if type(rows).__name__ == "DataFrame" else rows  # it iterates over its columns
        given = [{"text": r} if isinstance(r, str) else r for r in records]
        for i, row in enumerate(given):
            if not isinstance(row, Mapping):
                raise InputError(f"row {i + 1}: expected a text or {{'text': ...}}, got {row!r:.60}")
        asked = self.asked(task, given)
        return self.told(task, asked, self.answers([(s, [given[i] for i in ids]) for s, ids in asked]), len(given))

    def asked(self, task: str | Sequence[str], given: Sequence[Mapping[str, Any]]) -> Asked:
        """Which rows each task answers: all where one is asked (InputError if it cannot), else those that it can read."""
        if isinstance(task, str) and task != "all":
            served = self.able(task)
            for i, row in enumerate(given):
                problem = missing(served.kind, served.record["kind"], row)
                if problem:
                    raise InputError(f"row {i + 1}: task {task} {problem}, got keys {', '.join(row) or 'none'}")
            return [(served, list(range(len(given))))]
        several = list(self.served.values()) if task == "all" else [self.able(n) for n in task]
        return [
            (s, [i for i, row in enumerate(given) if s.sound and not missing(s.kind, s.record["kind"], row)]) for s in several
        ]

    def told(self, task: str | Sequence[str], asked: Asked, found: Sequence[tuple[list[Any], list[Any]]], rows: int,
             ) -> list[dict[str, Any]]:  # fmt: skip
        """What :meth:`answers` found, as :meth:`predict` returns it."""
        named = []
        for (served, _), answer in zip(asked, found, strict=True):
            with told_of(served.name):
                named.append(self._named(served, *answer))
        if isinstance(task, str) and task != "all":
            return named[0]
        out: list[dict[str, Any]] = [{served.name: None for served, _ in asked} for _ in range(rows)]
        for (served, ids), answers in zip(asked, named, strict=True):
            for i, entry in zip(ids, answers, strict=True):
                out[i][served.name] = entry
        return out

    def _named(self, served: Served, predictions: list[Any], scores: list[Any]) -> list[dict[str, Any]]:
        out = [served.kind.named(p, s) for p, s in zip(predictions, scores, strict=True)]
        limit = float(served.post.get("abstain", torch.zeros(())))
        for entry, s in zip(out, scores, strict=True):
            if limit and isinstance(s, list) and max(s) < limit:
                entry["abstain"] = True
        return out

    @torch.no_grad()
    def answers(self, asked: Sequence[tuple[Served, Sequence[Mapping[str, Any]]]]) -> list[tuple[list[Any], list[Any]]]:
        """(predictions, scores) of each task on its rows, in the label encoding; all through shared forward passes."""
        with self._lock:  # a route, hooks and a tokenizer are of one call at a time
            return self._answers(asked)

    def _answers(self, asked: Sequence[tuple[Served, Sequence[Mapping[str, Any]]]]) -> list[tuple[list[Any], list[Any]]]:
        units, features = self.units(asked), dict[bool, Any]()
        for words in (False, True):
            heard = zip((s for s, _ in asked), units, strict=True)
            wanted = [(s, t) for s, (_, tokens) in heard if s.kind.words is words and not s.kind.speaks for t in tokens]
            features[words] = iter(self.encoded(wanted, words))
        out = []
        for (served, rows), (counts, tokens) in zip(asked, units, strict=True):
            z = features[served.kind.words]
            said: list[Any] = self.said([(served, t) for t in tokens]) if served.kind.speaks else [next(z) for _ in tokens]
            out.append(self.answer(served, rows, said, counts))
        return out

    def units(self, asked: Sequence[tuple[Served, Sequence[Mapping[str, Any]]]]) -> list[tuple[list[int], list[Tokens]]]:
        """Of each task on its rows: units (or words) of each row, and the tokens of all units.

        What is cut at one length goes through the tokenizer together.
        """
        groups: dict[Any, list[tuple[int, list[list[Any]]]]] = {}
        for j, (served, rows) in enumerate(asked):
            how = served.kind.speaks, served.kind.words, served.record.get("max_length")
            groups.setdefault(how, []).append((j, served.kind.units(rows_of(rows))))
        out: list[tuple[list[int], list[Tokens]]] = [([], [])] * len(asked)
        for (speaks, words, longest), members in groups.items():
            flat = [unit for _, texts in members for row in texts for unit in row]
            found = self.backbone.spoken(flat, [None] * len(flat), longest) if speaks else self.backbone.tokens(flat, longest)
            tokens = iter(found)
            for j, texts in members:
                mine = [next(tokens) for row in texts for _ in row]
                out[j] = [len(t.starts) for t in mine] if words else [len(row) for row in texts], mine
        return out

    def encoded(self, wanted: Sequence[tuple[Served, Tokens]], words: bool) -> list[Tensor]:
        """Features of units under their tasks' slots, [1, d] (2d with f's middle) or of their words [words, d]."""
        live = Features(self.backbone, None, self.tail)
        units, numbers = live.add([tokens for _, tokens in wanted]), [served.number for served, _ in wanted]
        found = encode(live, self.adapted, units, numbers, words, self.routes)
        for i, served in [(i, served) for i, (served, _) in enumerate(wanted) if served.after]:
            with told_of(served.name):
                found[i] = corrected(found[i], served.after)
        return found

    def said(self, wanted: Sequence[tuple[Served, Tokens]]) -> list[str]:
        """What f goes on to say after texts of one slot."""
        live = Features(self.backbone, None, self.tail)
        return speak(live, self.adapted, live.add([t for _, t in wanted]), self.routes([wanted[0][0].number])) if wanted else []

    def answer(
        self, served: Served, rows: Sequence[Mapping[str, Any]], z: list[Any], counts: list[int]
    ) -> tuple[list[Any], list[Any]]:
        """(predictions, scores) of a task from its units' features, or from what was said."""
        with told_of(served.name):
            return self._answer(served, rows, z, counts)

    def _answer(
        self, served: Served, rows: Sequence[Mapping[str, Any]], z: list[Any], counts: list[int]
    ) -> tuple[list[Any], list[Any]]:
        if served.kind.speaks:
            return z, z
        if not rows:
            return [], []
        x = torch.cat(z)
        if served.corpus is not None:
            return ranked(
                torch.nn.functional.normalize(x[:, : self.backbone.d], dim=-1), self.index_of(served), list(served.corpus)
            )
        pred, scores = served.kind.answer(
            apply(served.head, joined(served.kind, x, counts, self.backbone.d)), counts, served.post
        )
        if served.kind.words:
            common, whole = served.record["common"], [len(row["tokens"]) for row in rows]
            pred = [p + [common] * (n - len(p)) for p, n in zip(pred, whole, strict=True)]
            scores = [s + [0.0] * (n - len(s)) for s, n in zip(scores, whole, strict=True)]
        return pred, scores

    def index_of(self, served: Served) -> Tensor:
        """The corpus of a retrieval task as unit vectors [documents, d], made at first use."""
        if served.index is None:
            assert served.corpus is not None
            tokens = self.backbone.tokens(list(served.corpus.values()), served.record.get("max_length"))
            z = torch.cat(self.encoded([(served, t) for t in tokens], False))
            served.index = torch.nn.functional.normalize(z[:, : self.backbone.d], dim=-1)
        return served.index

    def take(self, other: "Model", task: str, name: str) -> None:
        """From now on ``name`` is answered as ``other``, a model of the same backbone and banks, answers ``task``.

        The bits of the other tasks' slots stay; a task that had the name goes.
        """
        new = other.task(task)
        if name in self.served:
            self.drop(name)
        mine, path = Served(name, new.record, 0, new.head, new.post, new.corpus, new.after), list(self._paths[0])
        if new.slot:
            mine.slot = [bank.add([theirs.take(new.slot)])[0] for bank, theirs in zip(self.banks, other.banks, strict=True)][0]
            path = [((mine.slot,), 0)] * len(self.banks)
        mine.number, mine.index = len(self._paths), new.index
        self._paths.append(path)
        self._serve({**self.served, name: mine})

    def drop(self, name: str) -> None:
        """Forgets a task, and its slot unless others share it."""
        gone = self.task(name)
        rest = {n: s for n, s in self.served.items() if n != name}
        plain = [i for i, bank in enumerate(self.banks) if bank.gate.plain]  # the others hold slots that a gate routes over
        if gone.slot and all(s.slot != gone.slot for s in rest.values()):
            moved = [self.banks[i].remove([gone.slot]) for i in plain][0]
            for served in rest.values():
                served.slot = moved[served.slot]
        paths = [self._paths[0]]
        for served in rest.values():
            paths.append([((served.slot,), 0) if i in plain else way for i, way in enumerate(self._paths[served.number])])
            served.number = len(paths) - 1
        self._paths = paths
        self._serve(rest)

    def _serve(self, served: dict[str, Served]) -> None:
        """In one step, for threads that look on."""
        self.served, self.bundle = served, {**self.bundle, "tasks": {n: s.record for n, s in served.items()}}

    def evaluate(self, folder: Path | str, on_error: str = "stop") -> dict[str, dict[str, Any]]:
        """Each task of the bundle on the labelled test rows of ``folder/<task>`` (or ``folder`` itself for one task)."""
        from anabranch.task.data import load_task
        from anabranch.task.plan import TaskSpec

        root, out = Path(folder), {}
        places = {n: root / n for n in self.served if (root / n).exists()}
        if not places and len(self.served) == 1:
            places = {next(iter(self.served)): root}
        if not places:
            raise InputError(f"{root} has no folder named after a task of this bundle{nearest(root.name, self.served)}")
        for name, place in places.items():
            served = self.able(name)
            spec = TaskSpec(data=str(place), kind=served.record["kind"], labels=served.record["labels"] or None)
            task = load_task(name, spec, seed=self.bundle["made"]["seed"], on_error=on_error)  # type: ignore[arg-type]
            rows = task.test
            pred, scores = self.answers([(served, dicts(rows))])[0]
            real = served.record["labels"] if not served.kind.words else None
            value = score(served.record["metric"], rows.label, pred, scores if real else None, served.record["labels"])
            out[name] = {"metric": served.record["metric"], "score": value, "rows": len(rows)}
        return out


def load(path: Path | str, device: str | None = None) -> Any:
    """A run or a bundle as a :class:`Model`; a backbone's name (``minilm``) as a bundle of no tasks."""
    place = Path(path)
    if isinstance(path, str) and not place.exists() and "/" not in path:
        return backbone_of(path, "float32")
    folder, bundle = open_bundle(place)
    with readable(folder):
        backbone = backbone_of(bundle["backbone"]["id"], bundle["dtype"])
        same_backbone(backbone, bundle, folder)
        return Model(folder, bundle, backbone)
