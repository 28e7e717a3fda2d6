"""An audit that needs no network: every dependency is pinned, and what is installed may be used as we use it."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

REPO = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINNED = {
    canonical(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (REPO / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
}
# MPL covers its own files, which we do not change; what it is linked with stays as it is
FREE = re.compile(
    r"\b(MIT|MIT-0|MIT-CMU|HPND|BSD|0BSD|Apache|ISC|PSF|Python-2\.0|Python Software Foundation|Unlicense|Public Domain|CC0|zlib|BSL-1\.0|MPL|Mozilla|NCSA|WTFPL"
    r"|Historical Permission Notice)\b|\b(BSD-\d|Apache-2|MPL-2|PSF-2|CNRI)",
    re.IGNORECASE,
)
BOUND = re.compile(r"\b(A?L?GPL|GNU|EUPL|SSPL|BUSL|Commons Clause|proprietary|non-?commercial)", re.IGNORECASE)
# solvers that torchjd's extra brings for some aggregators; nothing else needs them, and nothing of ours holds their code
COPYLEFT = {"ecos": "GPL-3.0", "quadprog": "GPL-2.0", "qpsolvers": "LGPL-3.0"}
TOLD = {}  # what a distribution's own files say where its metadata are silent


def closure(*extras: str, tested: bool = False) -> set[str]:
    """Names of the distributions that these extras bring along, base included, as far as they are installed here.

    ``tested``: follow only those in the version that is pinned; others may need what the pinned one does not.
    """
    todo = [(Requirement(word), "") for group in (PROJECT["dependencies"], *(EXTRAS[e] for e in extras)) for word in group]
    seen, found = set[tuple[str, str]](), set[str]()
    while todo:
        wanted, extra = todo.pop()
        if wanted.marker and not wanted.marker.evaluate({**default_environment(), "extra": extra}):
            continue
        name = canonical(wanted.name)
        for asked in ["", *wanted.extras]:
            if (name, asked) in seen:
                continue
            seen.add((name, asked))
            try:
                requires = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            found.add(name)
            if tested and metadata.version(name).partition("+")[0] != PINNED.get(name):
                continue
            todo += [(Requirement(word), asked) for word in requires]
    return found - {"anabranch"}


def licence(name: str) -> str:
    """What a distribution says of its licence: the expression, the classifiers, else the first line of the free text."""
    about = metadata.metadata(name)
    classified = [
        c.rpartition(" :: ")[2]
        for c in about.get_all("Classifier") or ()
        if c.startswith("License :: ") and not c.endswith("OSI Approved")
    ]
    first = next(iter((about.get("License") or "").strip().splitlines()), "")
    said = [about.get("License-Expression") or "", *classified, first if len(first) < 200 else ""]
    return "; ".join(dict.fromkeys(s for s in said if s and s != "UNKNOWN")) or TOLD.get(canonical(name), "") or text_of(name)


def text_of(name: str) -> str:
    """The head of the licence file that it ships, where its metadata say nothing."""
    for file in metadata.files(name) or ():
        if re.match(r"(licen[cs]e|copying)", file.name, re.IGNORECASE) and Path(str(file.locate())).is_file():
            return " ".join(Path(str(file.locate())).read_text(encoding="utf-8", errors="replace").split())[:400]
    return ""


def free(said: str) -> bool:
    """At least one of the offered licences is permissive: ``MIT OR GPL`` is, ``MIT AND GPL`` is not."""
    offers = re.split(r"\bOR\b", said)
    return any(FREE.search(offer) and not BOUND.search(offer) for offer in offers)


@pytest.mark.parametrize("group", ["base", *EXTRAS])
def test_every_dependency_is_pinned(group):
    words = PROJECT["dependencies"] if group == "base" else EXTRAS[group]
    lost = [word for word in words if canonical(Requirement(word).name) not in PINNED]
    assert not lost, f"not in constraints.txt: {', '.join(lost)}; run make constraints"
    wrong = [w for w in words if not Requirement(w).specifier.contains(PINNED[canonical(Requirement(w).name)], prereleases=True)]
    assert not wrong, f"constraints.txt pins another version than pyproject allows: {', '.join(wrong)}"


def test_what_they_bring_along_is_pinned_too():
    there = closure(*EXTRAS, tested=True)
    lost = sorted(
        n
        for n in there
        if n not in PINNED and not n.startswith(("nvidia-", "cuda-", "triton")) and n not in {"pip", "setuptools", "wheel"}
    )
    assert not lost, f"installed but not in constraints.txt: {', '.join(lost)}; run make constraints"


def test_no_pin_is_a_range_or_an_address():
    lines = [
        line for line in (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    assert not [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!]+", line)]
    assert len(PINNED) == len(lines) == len({canonical(line.partition("==")[0]) for line in lines})


@pytest.mark.parametrize("group", ["base", *EXTRAS])
def test_licences_are_permissive(group):
    """Of all that is installed here for a group. A copyleft solver may come with an extra that names it, never with the base."""
    there = closure(*([] if group == "base" else [group]))
    assert len(there) > 10
    allowed = COPYLEFT if group == "balance" else {}
    unknown = {name: licence(name) for name in sorted(there) if name not in allowed and not free(licence(name))}
    assert not unknown, f"not known to be permissive: {unknown}"


def test_licences_are_told_apart():
    assert (
        free("MIT")
        and free("BSD-3-Clause")
        and free("Apache-2.0 OR GPL-3.0-only")
        and free("Apache Software License; Apache 2.0")
    )
    assert (
        not free("GPL-3.0")
        and not free("MIT AND LGPL-2.1")
        and not free("")
        and not free("Proprietary")
        and not free("GNU General Public License v3")
    )
