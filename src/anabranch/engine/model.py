"""``Model``: a bundle that answers. One forward pass serves rows of many tasks; the blocks below the deltas run once per text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anabranch.core.adapt import Adapted
from anabranch.core.bank import Bank, Tree
from anabranch.core.route import Route
from anabranch.engine.backbone import Backbone
from anabranch.engine.backbone import load as load_backbone
from anabranch.engine.features import Features
from anabranch.engine.job import Head, apply, joined
from anabranch.engine.linear import ranked, speak
from anabranch.engine.store import bank_of, corpus_of, cut, get, open_bundle, parts_of, same_backbone, unpack
from anabranch.engine.train import encode
from anabranch.errors import InputError, nearest
from anabranch.task import kind as kinds
from anabranch.task.data import Rows
from anabranch.task.kind import Kind
from anabranch.task.kind._base import Post
from anabranch.task.metrics import score


class Served:
    """One task of a bundle: its slot (0: f itself), head, settled numbers, and for retrieval the index of its corpus."""

    def __init__(self, name: str, record: Mapping[str, Any], slot: int, head: Head, post: Post, corpus: Mapping[str, str] | None):
        self.name, self.record, self.slot, self.head, self.post, self.corpus = name, record, slot, head, post, corpus
        self.kind: Kind = kinds.find(record["kind"])(record["labels"], record["two"], record["mean"], record["std"])
        self.number = 0  # of its routes in the model
        self.index: Tensor | None = None


class Model:
    """A loaded bundle. ``model.predict("intent", [{"text": ...}])``; ``model.tasks`` has each task's record."""

    def __init__(self, folder: Path, bundle: Mapping[str, Any], backbone: Backbone) -> None:
        self.folder, self.bundle, self.backbone = folder, bundle, backbone
        self.banks: list[Bank] = [bank_of(entry) for entry in bundle["banks"]]
        for bank, entry in zip(self.banks, bundle["banks"], strict=True):
            if entry.get("file"):
                bank.tables["shared"].put(1, unpack(get(folder, entry["file"])))
        self.served: dict[str, Served] = {}
        shared, trees = bundle.get("shared") or {}, list[Tree]()
        first, many = shared.get("bank", 0), shared.get("slots", 0)  # where a gate routes over slots of its own, and how many
        whole = get(folder, shared["file"]) if shared else {}
        whole = {n.partition("/")[2]: t for n, t in whole.items()}
        users: dict[str, int] = {}
        self._paths = [[((0,) * max(1, many if first and i >= first else 1), 0) for i in range(len(self.banks))]]
        for name, record in bundle["tasks"].items():
            packed, head, post, gate = parts_of(folder, record["file"])
            path, slot = list(self._paths[0]), 0
            if record["rung"] == "shared" and many:
                gates = unpack(gate)
                for i in range(first, len(self.banks)):
                    who = self.banks[i].add_gate(cut(gates, i - first)) if self.banks[i].tables["gate"].n else 0
                    path[i] = (tuple(range(1, many + 1)), who)
            elif packed or record["rung"] == "shared":
                key = f"task {name}" if packed else "shared"
                if key not in users:
                    trees.append(unpack(packed or whole))
                    users[key] = len(trees)
                slot = users[key]
                path[: first or None] = [((slot,), 0)] * (first or len(self.banks))
            self._paths.append(path)
            corpus = corpus_of(folder, record["corpus"]) if record.get("corpus") else None
            self.served[name] = Served(name, record, slot, head, post, corpus)
            self.served[name].number = len(self._paths) - 1
        experts = [{n.partition(".")[2]: t for n, t in whole.items() if n.startswith(f"{e}.")} for e in range(many)]
        for i, bank in enumerate(self.banks):
            mine = trees if not first or i < first else [unpack(packed) for packed in experts]
            bank.add([cut(tree, i - (first if first and i >= first else 0)) for tree in mine])
            bank.to(backbone.dtype)
        self.tail = max(0, min((s.depth for bank in self.banks for s in bank.sites), default=0))
        self.adapted = Adapted(backbone.f, self.banks, self.tail)

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

    def predict(self, task: str | Sequence[str], rows: Any) -> list[dict[str, Any]]:
        """One answer per row: ``{"prediction", "scores"}``; for several tasks or ``all``, ``{task: answer or None}``.

        ``rows``: a list of texts, of ``{"text", "text_b"?, "tokens"?, "choices"?}``, or a pandas frame of these columns.

        None where a row lacks what the task reads. InputError names the row and what is missing when one task is asked.
        """
        if isinstance(rows, (str, Mapping)):
            raise InputError("rows is a list of texts or of {'text': ...}, got a single one: put it in [ ]")
        records = rows.to_dict("records") if type(rows).__name__ == "DataFrame" else rows  # it iterates over its columns
        given = [{"text": r} if isinstance(r, str) else r for r in records]
        for i, row in enumerate(given):
            if not isinstance(row, Mapping):
                raise InputError(f"row {i + 1}: expected a text or {{'text': ...}}, got {row!r:.60}")
        if isinstance(task, str) and task != "all":
            served = self.task(task)
            for i, row in enumerate(given):
                problem = missing(served.kind, served.record["kind"], row)
                if problem:
                    raise InputError(f"row {i + 1}: task {task} {problem}, got keys {', '.join(row) or 'none'}")
            return self._named(served, *self.answers([(served, given)])[0])
        asked = [self.task(n) for n in (self.served if task == "all" else task)]
        fit = [[i for i, row in enumerate(given) if not missing(s.kind, s.record["kind"], row)] for s in asked]
        found = self.answers([(s, [given[i] for i in ids]) for s, ids in zip(asked, fit, strict=True)])
        out: list[dict[str, Any]] = [{s.name: None for s in asked} for _ in given]
        for served, ids, answer in zip(asked, fit, found, strict=True):
            for i, entry in zip(ids, self._named(served, *answer), strict=True):
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
        out: dict[int, tuple[list[Any], list[Any]]] = {}
        for words in (False, True):
            live = Features(self.backbone, None, self.tail)
            plan, flat, slots = [], list[int](), list[int]()
            for j, (served, rows) in enumerate(asked):
                if served.kind.speaks and not words:
                    asking = live.add(
                        self.backbone.spoken([r["text"] for r in rows], [None] * len(rows), served.record.get("max_length"))
                    )
                    answers = speak(live, self.adapted, asking, self.routes([served.number]))
                    out[j] = answers, answers
                elif served.kind.words is words and not served.kind.speaks:
                    units = served.kind.units(rows_of(rows))
                    ids = live.add(self.backbone.tokens([u for row in units for u in row], served.record.get("max_length")))
                    plan.append((j, served, rows, [len(row) for row in units], ids))
                    flat, slots = flat + ids, slots + [served.number] * len(ids)
            z = iter(encode(live, self.adapted, flat, slots, words, self.routes))
            for j, served, rows, counts, ids in plan:
                mine = [next(z) for _ in ids]
                out[j] = self._answer(served, rows, mine, [len(m) for m in mine] if words else counts)
        return [out[j] for j in range(len(asked))]

    def _answer(
        self, served: Served, rows: Sequence[Mapping[str, Any]], z: list[Tensor], counts: list[int]
    ) -> tuple[list[Any], list[Any]]:
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
            live = Features(self.backbone, None, self.tail)
            units = live.add(self.backbone.tokens(list(served.corpus.values()), served.record.get("max_length")))
            z = encode(live, self.adapted, units, [served.number] * len(units), False, self.routes)
            served.index = torch.nn.functional.normalize(torch.cat(z)[:, : self.backbone.d], dim=-1)
        return served.index

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
            served = self.task(name)
            spec = TaskSpec(data=str(place), kind=served.record["kind"], labels=served.record["labels"] or None)
            task = load_task(name, spec, seed=self.bundle["made"]["seed"], on_error=on_error)  # type: ignore[arg-type]
            rows = task.test
            pred, scores = self.answers([(served, dicts(rows))])[0]
            real = served.record["labels"] if not served.kind.words else None
            value = score(served.record["metric"], rows.label, pred, scores if real else None, served.record["labels"])
            out[name] = {"metric": served.record["metric"], "score": value, "rows": len(rows)}
        return out


def missing(kind: Kind, name: str, row: Mapping[str, Any]) -> str:
    """What a row lacks for a kind, in words; empty when nothing."""
    needs = {"tag": ["tokens"], "choice": ["text", "choices"], "pair": ["text", "text_b"]}.get(name, ["text"])
    needs = needs + ["text_b"] * (kind.two and "text_b" not in needs)
    for key in needs:
        many = key in ("tokens", "choices")
        value = row.get(key)
        if many and not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
            return f"needs {key!r}, a list of strings"
        if not many and not isinstance(value, str):
            return f"needs {key!r}, a string"
    return ""


def rows_of(rows: Sequence[Mapping[str, Any]]) -> Rows:
    def column(name: str) -> Any:
        return [r.get(name) for r in rows] if rows and all(r.get(name) is not None for r in rows) else None

    text = [r.get("text") or " ".join(r.get("tokens") or ()) for r in rows]
    return Rows(text, column("text_b"), column("tokens"), column("choices"), [None] * len(rows))


def dicts(rows: Rows) -> list[dict[str, Any]]:
    names = [n for n in ("text", "text_b", "tokens", "choices") if getattr(rows, n) is not None]
    return [{n: getattr(rows, n)[i] for n in names} for i in range(len(rows))]


_BACKBONES: dict[tuple[str, str], Backbone] = {}


def load(path: Path | str, device: str | None = None) -> Any:
    """A run or a bundle as a :class:`Model`; a backbone's name (``minilm``) as a bundle of no tasks."""
    place = Path(path)
    if isinstance(path, str) and not place.exists() and "/" not in path:
        return backbone_of(path, "float32")
    folder, bundle = open_bundle(place)
    backbone = backbone_of(bundle["backbone"]["id"], bundle["dtype"])
    same_backbone(backbone, bundle, folder)
    return Model(folder, bundle, backbone)


def backbone_of(name: str, dtype: str) -> Backbone:
    """Loaded once per process and type; the fingerprint is taken in fp32."""
    key = (name, dtype)
    if key not in _BACKBONES:
        backbone = load_backbone(name)
        _ = backbone.fingerprint
        backbone.f.to(getattr(torch, dtype))
        _BACKBONES[key] = backbone
    return _BACKBONES[key]
