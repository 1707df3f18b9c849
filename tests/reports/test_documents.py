"""Filling documents with the snapshot's tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports.__main__ import app
from reports.documents import filled

TABLE = "**Caption.**\n\n| x |\n| --- |\n| 1 |\n\n- a note\n"
WANT = "before\n<!-- table: a.md -->\n\n**Caption.**\n\n| x |\n| --- |\n| 1 |\n\n<!-- end -->\nafter\n"


def test_a_table_is_taken_without_its_notes(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(TABLE)
    text = "before\n<!-- table: a.md -->\nold\n<!-- end -->\nafter\n"
    assert filled(text, tmp_path) == WANT
    assert filled(WANT, tmp_path) == WANT


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b\.md: no such table"):
        filled("<!-- table: b.md -->\n<!-- end -->", tmp_path)


def test_the_command_fills_the_readme_and_every_page(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.md").write_text(TABLE)
    empty = "before\n<!-- table: a.md -->\n<!-- end -->\nafter\n"
    for name, text in (("README.md", empty), ("docs/one.md", WANT), ("docs/two.md", empty)):
        (tmp_path / name).write_text(text)
    options = ["documents", "--root", str(tmp_path), "--snapshot", str(tmp_path / "snapshot")]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0
    assert done.output.split() == [str(tmp_path / "README.md"), str(tmp_path / "docs" / "two.md")]
    assert {(tmp_path / name).read_text() for name in ("README.md", "docs/one.md", "docs/two.md")} == {WANT}
    (tmp_path / "docs" / "two.md").write_text("<!-- table: b.md -->\n<!-- end -->")
    assert CliRunner().invoke(app, options).exit_code == 2
