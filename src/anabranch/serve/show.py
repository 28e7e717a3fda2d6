"""What a page shows of an answer: its words, how sure they are, marked tokens, ranked documents, the deltas that fired."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
BEST = 5  # labels that are shown with their scores
LENGTH = 240  # characters of a document


def row_for(given: Mapping[str, str]) -> dict[str, Any]:
    """A form's fields as a row that every kind may read; {} without a text."""
    text = given.get("text", "").strip()
    if not text:
        return {}
    row: dict[str, Any] = {"text": text, "tokens": WORD.findall(text) or [text]}
    if second := given.get("text_b", "").strip():
        row["text_b"] = second
    if choices := [line.strip() for line in given.get("choices", "").splitlines() if line.strip()]:
        row["choices"] = choices
    return row


def answer(served: Any, found: Mapping[str, Any] | None, row: Mapping[str, Any]) -> dict[str, Any]:
    """``{"name", "kind", "said", "sure", "best", "pieces", "ranked", "abstain", "truncated", "lacks"}``; of the middle ones,
    those that the kind has. sure and the second of best are in [0, 1]; pieces: (words, label or None, sure)."""
    kind = served.record["kind"]
    out: dict[str, Any] = {"name": served.name, "kind": kind, "said": None, "sure": None, "best": [], "pieces": [], "ranked": [],
                           "abstain": False, "truncated": False, "lacks": ""}  # fmt: skip
    if found is None:
        return out | {
            "lacks": "a second text" if served.kind.two or kind == "pair" else "choices" if kind == "choice" else "a text"
        }
    said, scores = found["prediction"], found["scores"]
    out |= {"abstain": bool(found.get("abstain")), "truncated": bool(found.get("truncated"))}
    if kind == "tag":
        return out | {"pieces": pieces(row["tokens"], said, scores), "sure": min(scores, default=None)}
    if kind == "retrieve":
        texts = served.corpus or {}
        return out | {"ranked": [d | {"text": texts.get(d["id"], "")[:LENGTH]} for d in said[:BEST]]}
    if kind == "choice":
        best = sorted(zip(row["choices"], scores, strict=False), key=lambda b: -b[1])
        return out | {"said": row["choices"][said], "sure": scores[said], "best": best[:BEST]}
    if isinstance(scores, Mapping):
        best = sorted(scores.items(), key=lambda b: -b[1])[:BEST]
        words = (", ".join(said) or "none of its labels") if isinstance(said, list) else said
        sure = scores[said] if isinstance(said, str) else min((max(p, 1 - p) for p in scores.values()), default=None)
        return out | {"said": words, "sure": sure, "best": best}
    if isinstance(said, (int, float)) or (isinstance(said, list) and all(isinstance(v, float) for v in said)):
        return out | {"said": ", ".join(f"{v:.4g}" for v in (said if isinstance(said, list) else [said]))}
    return out | {"said": str(said)}


def pieces(tokens: Sequence[str], labels: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str | None, float]]:
    """Neighbours of one entity (BIO), or of one label that is not O, stand together."""
    out: list[tuple[str, str | None, float]] = []
    for word, label, sure in zip(tokens, labels, scores, strict=False):
        head, _, name = label.partition("-")
        bio = head in ("B", "I") and bool(name)
        shown = None if label == "O" else name if bio else label
        if out and out[-1][1] == shown and head != "B" and (bio or shown is None):
            out[-1] = (f"{out[-1][0]} {word}", shown, min(out[-1][2], sure))
        else:
            out.append((word, shown, sure))
    return out


def fired(model: Any, name: str, found: Any, weighed: Sequence[Mapping[str, Any]] | None = None) -> list[tuple[str, float]]:
    """(slot, its weight) of an answer: as a gate weighed them, those below a hundredth left out, else the task's one slot; []
    is f itself."""
    if found is None:
        return []
    if weighed:
        return [(each["slot"], each["weight"]) for each in weighed if each["weight"] >= 0.01]
    kinds = ", ".join(dict.fromkeys(b["delta"]["method"].partition(".")[2] for b in model.bundle["banks"]))
    rung = model.served[name].record["rung"]
    return {"delta": [(f"its own {kinds}", 1.0)], "shared": [(f"the shared {kinds}", 1.0)]}.get(rung, [])


def task_of(told: Mapping[str, Any] | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """A task for the pages: what results.json tells of it, or what its record in the bundle says alone."""
    empty = dict.fromkeys(("majority", "probe", "shared", "delta", "kilobytes", "n_train", "n_valid", "n_test", "bm25"))
    mine = {
        "kind": record["kind"],
        "metric": record["metric"],
        "test": record["test"],
        "valid": record["valid"],
        "chosen": record["rung"],
    }
    rung = record["rung"] if record["rung"] in empty else "delta"
    if told and told["chosen"] == record["rung"] and told["test"] == record["test"]:
        return empty | {"curve": [], "rungs": {}} | dict(told)
    return empty | mine | {rung: record["test"], "curve": [], "rungs": {}, "labels": record["labels"]}
