"""The families' pages are those that the methods' files make now."""

from pathlib import Path

import pytest

from anabranch.report.families import pages, section, text_of, write

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", list(pages()), ids=str)
def test_no_page_is_stale(path: Path) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == pages()[path], "run: python -m anabranch.report.families"


def test_a_section_has_equation_settings_and_ranges() -> None:
    text = section("delta", "lora")
    assert "dW = (alpha / r)" in text and "| `rank` | a whole number in [1, inf) | `8` |" in text and "2106.09685" in text


def test_indented_lines_become_one_block() -> None:
    assert text_of("a\n\n    x = 1\n    y = 2\n\nb") == "a\n\n```text\nx = 1\ny = 2\n```\n\nb"


def test_write_leaves_fresh_pages_alone(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    assert write(tmp_path) and not write(tmp_path)
