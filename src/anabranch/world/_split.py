"""One honest split: whole files, near-duplicates together."""

import re
from collections import Counter, defaultdict
from itertools import combinations

from anabranch.world._scan import digest

NEAR = 0.8
SPLITS = {"train": 0.7, "valid": 0.8, "test": 1.0}  # where each ends on the line of hashes


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def twins(texts: list[str]) -> list[tuple[int, int]]:
    """Pairs i < j that share more than ``NEAR`` of the shorter one's word 5-grams (a shorter text is one gram)."""
    words = [normal(text).split() for text in texts]
    grams = [{tuple(w[i : i + 5]) for i in range(max(1, len(w) - 4))} for w in words]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, mine in enumerate(grams):
        for gram in mine:
            holders[gram].append(i)
    shared = Counter(pair for held in holders.values() if len(held) > 1 for pair in combinations(held, 2))
    return sorted((i, j) for (i, j), n in shared.items() if n > NEAR * min(len(grams[i]), len(grams[j])))


def split(files: list[str], pairs: list[tuple[int, int]]) -> list[str]:
    """The split of every row, from the hash of its file; files that ``pairs`` of rows tie together go together."""
    root = {file: file for file in files}

    def find(file: str) -> str:
        while root[file] != file:
            file = root[file]
        return file

    for i, j in pairs:
        low, high = sorted((find(files[i]), find(files[j])))
        root[high] = low  # a group goes by its first file
    place = {file: int(digest("split", find(file)), 16) / 16**16 for file in root}
    return [next(name for name, end in SPLITS.items() if place[file] < end) for file in files]
