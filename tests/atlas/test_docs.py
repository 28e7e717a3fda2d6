"""The generated pages are those of today's rows, methods, claims and verdicts."""

import json
from pathlib import Path

import pytest

from anabranch.atlas import status
from anabranch.atlas.docs import ROOT, pages, write
from anabranch.atlas.rows import rows
from anabranch.core.names import FAMILIES
from anabranch.errors import InputError


@pytest.mark.parametrize("path", sorted(pages()), ids=str)
def test_the_committed_pages_are_fresh(path: Path):
    assert (ROOT / path).read_text(encoding="utf-8") == pages()[path], "stale: run python -m anabranch.atlas.docs"


def test_every_row_has_its_section():
    text = pages()
    for r in rows():
        assert f"\n`{r.id}` · {r.kind}" in text[Path(f"docs/atlas/{r.family}.md")]
    assert not {p.name for p in (ROOT / "docs/atlas").iterdir()} - {p.name for p in text}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A repository whose package has one method, one claim and one verdict."""
    for name in (*FAMILIES, "claims/verdicts"):
        (tmp_path / "package" / name).mkdir(parents=True)
    (tmp_path / "package/merge/twin.py").write_text('"""Twin.\n\n    d = *a* + _b_\n"""\n\nrows = ("twin-merging",)\n')
    (tmp_path / "package/claims/twin_merging.py").touch()
    said = {
        "verdict": "held",
        "seconds": 12.34567,
        "twin": {"mean": 0.9},
        "plain": {"mean": 0.8, "interval": [0.7, 0.85]},
    }
    (tmp_path / "package/claims/verdicts/twin-merging.json").write_text(json.dumps(said))
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(status, "HOME", tmp_path / "package")
    return tmp_path


def test_a_page_shows_equation_usage_and_verdict(home):
    (home / "README.md").write_text("# Top\n\n<!-- atlas -->\nold\n<!-- /atlas -->\n\nend <!-- atlas -->\n")
    assert len(write(home)) == 17 and write(home) == []
    page = (home / "docs/atlas/merge.md").read_text()
    assert "18 rows: 1 held, 17 missing." in page
    for words in (
        "```text\nd = *a* + _b_\n```",
        "```yaml\nmerge: twin\n```",
        "**held** (seconds 12.35)",
        "[0.7, 0.85]",
    ):
        assert words in page
    readme = (home / "README.md").read_text()
    assert readme.startswith("# Top\n\n<!-- atlas -->\n| family | rows |") and readme.endswith("end <!-- atlas -->\n")
    assert "| [merge](docs/atlas/merge.md) | 18 | 1 | 0 | 0 | 0 | 17 |" in readme and "old" not in readme


def test_formulas_survive_markdown():
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["strikethrough"])
    from anabranch.atlas.docs import _plain

    for r in rows():
        for text in (r.title, r.idea, r.build, r.baseline, r.claim):
            parts = markdown.parse(f"x {_plain(text)}")[1].children
            assert {p.type for p in parts} <= {"text", "text_special", "code_inline"}, text
            assert "".join(f"`{p.content}`" if p.type == "code_inline" else p.content for p in parts) == f"x {text}"


def test_only_a_repository_has_pages(tmp_path, home):
    with pytest.raises(InputError, match="run this in a checkout"):
        write(tmp_path / "package")
    (home / "README.md").write_text("<!-- atlas -->\n")
    with pytest.raises(InputError, match="between two marks"):
        pages(home)
