"""What hypothesis makes of inputs: odd values, odd texts, and good bytes that came to harm."""

import json
from typing import Any

from hypothesis import strategies as st

ODD_TEXTS = [
    "", " ", "\0", "\ud800", "\u2028", "﻿", "all", "..", "../../etc/passwd", "/etc/passwd", "~root", "a/b", "nan", "inf", "-1", "1e999", "9" * 5000,
    "[1, 2", "[" * 5000, '["\\ud800"]', "yes", "null", "²", "٣", "a\nb", "a,b", '"', "'", "é" * 300, "💣", "%s%n", "${x}", "{{1+1}}", "=1+1",
    "text", "label", "train", "classify", "attention.query[-1:]", "block[", "C:\\x", "file:///etc/passwd", "http://127.0.0.1:9/x", "O", "B-", "|", "a|",
]  # fmt: skip
ODD_NUMBERS = [
    0,
    -1,
    1,
    2,
    10**6,
    2**63,
    -(2**63),
    10**30,
    0.0,
    -0.0,
    0.5,
    1e-300,
    1e300,
    float("inf"),
    float("-inf"),
    float("nan"),
]
texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=12) | st.text(st.characters(codec="utf-8"), max_size=12)
scalars = st.none() | st.booleans() | st.sampled_from(ODD_NUMBERS) | st.integers() | st.floats() | texts
values = st.recursive(scalars, lambda part: st.lists(part, max_size=4) | st.dictionaries(texts, part, max_size=4), max_leaves=8)


@st.composite
def harmed(draw: st.DrawFn, good: bytes, most: int = 6) -> bytes:
    """``good`` after some accidents: bytes flipped, lost, doubled, put in; cut off; other numbers where lengths may stand."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "lose", "double", "insert", "cut", "number", "zero"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "lose":
                del data[at : at + draw(st.integers(1, 40))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=20) | texts.map(lambda t: t.encode("utf-8", "surrogatepass")))
            case "cut":
                del data[at:]
            case "number":
                start = draw(st.sampled_from([0, at]))
                data[start : start + 8] = draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
            case "zero":
                n = draw(st.integers(1, 40))
                data[at : at + n] = bytes(len(data[at : at + n]))
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, good: Any, most: int = 3, others: st.SearchStrategy[Any] = values) -> Any:
    """A JSON value in which some places hold another value, nothing, or one thing more."""
    made = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, most))):
        place, key = None, None
        here = made
        while isinstance(here, (dict, list)) and here and (place is None or draw(st.integers(0, 3))):
            place = here
            key = draw(st.sampled_from(sorted(here))) if isinstance(here, dict) else draw(st.integers(0, len(here) - 1))
            here = here[key]
        if place is None:
            continue
        match draw(st.sampled_from(["change", "change", "change", "drop", "add"])):
            case "change":
                place[key] = draw(others)
            case "drop":
                del place[key]
            case "add" if isinstance(place, dict):
                place[draw(texts)] = draw(others)
            case "add":
                place.append(draw(others))
    return made
