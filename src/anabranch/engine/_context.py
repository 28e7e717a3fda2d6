"""Synthetic text for a small language model: words of no language, tasks told by examples, two languages of one grammar.

A task is a function of a ``random.Random`` that returns (prompt, answer), both without spaces at their ends; the answer
is what a model should say after the prompt. Everything is made of ``WORDS``; :func:`said` says it in another language.
"""

import random
from collections.abc import Callable, Sequence
from functools import cache

Task = Callable[[random.Random], tuple[str, str]]

WORDS = tuple(onset + rhyme for onset in "bdgklmpz" for rhyme in ("af", "ev", "iz", "ok", "uv", "ax", "eb", "oj"))
PLAIN = (*"0123456789", "+", "-", "=")
KEYS = WORDS[:32]  # the words that rules map onto each other
RULES = 8  # rules that the training text uses
LANGUAGES = 2
FOLLOWERS = 4  # words that may follow a word in the grammar


@cache
def language(k: int) -> dict[str, str]:
    """Each word of language 0 -> the word of language ``k`` that means the same: one vocabulary, permuted."""
    return _permuted(WORDS, f"language {k}") if k else dict(zip(WORDS, WORDS, strict=True))


def said(text: str, k: int) -> str:
    """A text of language 0 in language ``k``; what is no word of it (numbers, signs) stays."""
    words = language(k)
    return " ".join(words.get(w, w) for w in text.split(" "))


@cache
def rule(k: int) -> dict[str, str]:
    """The ``k``-th rule: a permutation of ``KEYS``. Rules from ``RULES`` on are unseen in training."""
    return _permuted(KEYS, f"rule {k}")


def mapped(rng: random.Random, k: int | None = None, shots: int | None = None) -> tuple[str, str]:
    """``a -> x ; b -> y ; c ->``: one rule, the same in all of its texts; the asked word is none of the examples."""
    pairs = rule(rng.randrange(RULES) if k is None else k)
    keys = rng.sample(KEYS, 1 + (rng.randint(1, 6) if shots is None else shots))
    return _examples([(w, pairs[w]) for w in keys[:-1]], keys[-1]), pairs[keys[-1]]


def recalled(rng: random.Random, shots: int | None = None) -> tuple[str, str]:
    """``a -> x ; b -> y ; a ->``: pairs made up for this text; the asked word is one of the examples."""
    n = rng.randint(2, 6) if shots is None else shots
    pairs = list(zip(rng.sample(WORDS, n), rng.sample(WORDS, n), strict=True))
    key, value = rng.choice(pairs)
    return _examples(pairs, key), value


def copied(rng: random.Random, length: int | None = None) -> tuple[str, str]:
    """``copy a b c :`` -> ``a b c``."""
    words = _some(rng, length)
    return f"copy {' '.join(words)} :", " ".join(words)


def turned(rng: random.Random, length: int | None = None) -> tuple[str, str]:
    """``turn a b c :`` -> ``c b a``."""
    words = _some(rng, length)
    return f"turn {' '.join(words)} :", " ".join(words[::-1])


def added(rng: random.Random, signs: Sequence[str] = PLAIN) -> tuple[str, str]:
    """``3 + 4 =`` -> ``7``, ``9 - 2 =`` -> ``7``, numbers from 0 to 9; ``signs``: the ten numbers, plus, minus, equals."""
    a, b = sorted((rng.randrange(10), rng.randrange(10)))
    whole, part = (b, a) if rng.random() < 0.5 else (b, b - a)
    if rng.random() < 0.5:
        return f"{signs[whole]} {signs[11]} {signs[part]} {signs[12]}", signs[whole - part]
    return f"{signs[part]} {signs[10]} {signs[whole - part]} {signs[12]}", signs[whole]


def spoken(rng: random.Random, k: int | None = None) -> tuple[str, str]:
    """A sentence of language ``k`` (one of ``LANGUAGES``) after its first word: the grammar's chain of words."""
    words = [rng.choice(WORDS)]
    for _ in range(rng.randint(5, 15)):
        words.append(rng.choice(_grammar()[words[-1]]))
    first, *rest = said(" ".join(words), rng.randrange(LANGUAGES) if k is None else k).split(" ")
    return first, " ".join(rest)


TASKS: tuple[Task, ...] = (mapped, recalled, copied, turned, added, spoken)


@cache
def _grammar() -> dict[str, list[str]]:
    rng = random.Random("grammar")
    return {word: rng.sample(WORDS, FOLLOWERS) for word in WORDS}


def _permuted(words: Sequence[str], seed: str) -> dict[str, str]:
    return dict(zip(words, random.Random(seed).sample(words, len(words)), strict=True))


def _some(rng: random.Random, length: int | None) -> list[str]:
    return rng.choices(WORDS, k=rng.randint(2, 6) if length is None else length)


def _examples(pairs: Sequence[tuple[str, str]], asked: str) -> str:
    return " ".join([*(f"{a} -> {x} ;" for a, x in pairs), f"{asked} ->"])
