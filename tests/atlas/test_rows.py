"""The rows: complete, typed, in our own words."""

import json
import re
from pathlib import Path

import pytest

from anabranch.atlas import rows as module
from anabranch.atlas.rows import Row, row, rows, table
from anabranch.atlas.status import STATUSES
from anabranch.core.names import FAMILIES
from anabranch.errors import InputError, WorkError

KINDS = {"method", "application", "analysis", "theory", "benchmark", "survey"}


def test_all_rows_are_there_once_in_order():
    assert [r.n for r in rows()] == list(range(398))
    assert len({r.id for r in rows()}) == 398
    assert len({r.id.replace("-", "_") for r in rows()}) == 398  # each its own claim file


@pytest.mark.parametrize("r", rows(), ids=lambda r: r.id)
def test_a_row_keeps_its_types_and_ranges(r: Row):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", r.id)
    assert r.family in FAMILIES and set(r.also) <= set(FAMILIES) - {r.family}
    assert r.kind in KINDS and r.fidelity in {"full", "miniature", "finding", "reference"}
    assert r.value in range(1, 6) and r.sure in range(1, 4)
    assert r.repo is None or re.fullmatch(r"[\w.-]+/[\w.-]+", r.repo)
    assert isinstance(r.needs, tuple) and (r.needs or r.fidelity == "reference")
    for text in (r.title, r.idea, r.build, r.baseline, r.claim):
        assert text == " ".join(text.split()) and len(text) >= 4
    assert all(text[-1] in ".?!" for text in (r.idea, r.build, r.claim))
    assert "$" not in r.title and "\\" not in r.title


def test_no_row_repeats_a_paper(data_root: Path):
    """No run of 12 words of ours is in an abstract."""
    file = data_root.parents[1] / "atlas" / "abstracts.jsonl"
    if not file.exists():
        pytest.skip("the abstracts are not here")
    grams = lambda text: zip(*(re.findall(r"[a-z0-9]+", text.lower())[i:] for i in range(12)), strict=False)  # noqa: E731
    theirs = {g for line in file.read_text(encoding="utf-8").splitlines() for g in grams(json.loads(line)["abstract"])}
    assert len(theirs) > 30_000
    ours = {r.id: f"{r.idea} {r.build} {r.baseline} {r.claim}" for r in rows()}
    assert not [id for id, text in ours.items() if not theirs.isdisjoint(grams(text))]


def test_row_by_id():
    assert row("compacter").title.startswith("Compacter: Efficient Low-Rank")
    assert row("mbc_arrow") is row("MBC-Arrow ") is row("mbc-arrow")


def test_unknown_id_names_the_nearest():
    with pytest.raises(InputError, match="no row 'compactor'; did you mean compacter"):
        row("compactor")
    with pytest.raises(InputError, match='anabranch atlas search "gradient surgery for tasks"'):
        row("gradient surgery for tasks")


def test_table_counts_every_row_once():
    counts = table()
    assert all(tuple(by) == STATUSES for by in counts.values())
    assert sum(sum(by.values()) for by in counts.values()) == 398
    assert sum(counts["world"].values()) == sum(r.family == "world" for r in rows()) == 63


def test_a_broken_catalogue_is_named(tmp_path, monkeypatch):
    broken = tmp_path / "rows.jsonl"
    broken.write_text('{"n": 0, "id": "x"}\n')
    monkeypatch.setattr(module, "FILE", broken)
    with pytest.raises(WorkError, match=f"{re.escape(str(broken))}.*reinstall"):
        rows.__wrapped__()
