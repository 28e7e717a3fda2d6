"""One honest split: whole files, near-duplicates together."""

import re
from collections import defaultdict

from anabranch.world._scan import digest

NEAR = 0.8
SPLITS = {"train": 0.7, "valid": 0.8, "test": 1.0}  # where each ends on the line of hashes


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def twins(texts: list[str]) -> list[tuple[int, int]]:
    """Pairs i < j that share more than ``NEAR`` of the shorter one's word 5-grams (a shorter text is one gram)."""
    words = [normal(text).split() for text in texts]
    grams = [{tuple(w[i : i + 5]) for i in range(max(1, len(w) - 4)) if w} for w in words]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, mine in enumerate(grams):
        for gram in mine:
            holders[gram].append(i)
    found = set()
    for i, mine in enumerate(grams):
        # so few may be missing that one of this many, whichever they are, is shared: look up the rarest
        rarest = sorted(mine, key=lambda gram: (len(holders[gram]), gram))[: int((1 - NEAR) * len(mine)) + 1]
        for j in {j for gram in rarest for j in holders[gram] if j != i and len(grams[j]) >= len(mine)}:
            if len(mine & grams[j]) > NEAR * len(mine):
                found.add((min(i, j), max(i, j)))
    return sorted(found)


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
