"""The README's tables are those of the snapshot, and the snapshot is what the committed records give."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.documents import BLOCK, filled

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_of_the_readme_are_those_of_the_snapshot() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(BLOCK.findall(text)) >= 2
    assert filled(text, ROOT / "reports" / "snapshot") == text


def test_every_figure_of_the_readme_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    named = [part.split(")")[0] for part in text.split("](reports/snapshot/")[1:]]
    assert named
    assert [name for name in named if not (ROOT / "reports" / "snapshot" / name).exists()] == []


def test_a_table_is_taken_without_its_notes(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("**Caption.**\n\n| x |\n| --- |\n| 1 |\n\n- a note\n")
    text = "before\n<!-- table: a.md -->\nold\n<!-- end -->\nafter\n"
    want = "before\n<!-- table: a.md -->\n\n**Caption.**\n\n| x |\n| --- |\n| 1 |\n\n<!-- end -->\nafter\n"
    assert filled(text, tmp_path) == want
    assert filled(want, tmp_path) == want


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b\.md: no such table"):
        filled("<!-- table: b.md -->\n<!-- end -->", tmp_path)
