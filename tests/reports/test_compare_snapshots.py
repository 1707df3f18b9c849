"""The comparison of two snapshots: every value that differs is named by its place, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "compare_snapshots.py"
TABLE = "**Scores, 3 seeds: words.**\n\n| Method | RTE | CoLA |\n"
TABLE += "| --- | ---: | ---: |\n| LoRA | 1.0 | **2.0** |\n\n- n = 3\n"


def compared(old: Path, new: Path) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, SCRIPT, old, new], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def test_values_are_compared_by_their_places_and_texts_by_their_numbers(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, table, rows in (
        (old, TABLE, "method,mean\nlora,1.0\nfull,2.0\n"),
        (new, TABLE.replace("1.0", "1.1").replace("words", "other words"), "method,mean\nfull,2.0\nlora,1.5\n"),
    ):
        folder.mkdir()
        (folder / "scores.md").write_text(table)
        (folder / "scores.csv").write_text(rows)
    (old / "gone.md").write_text(TABLE)
    code, lines = compared(old, new)
    assert code == 1
    assert lines == [
        "gone.md: absent in the new folder",
        "scores.csv: lora #1, mean: 1.0 -> 1.5",
        "scores.md: **Scores, 3 seeds LoRA, RTE #1, RTE: 1.0 -> 1.1",
        "3 differences",
    ]


def test_a_number_in_the_words_around_a_table_is_a_value(tmp_path: Path) -> None:
    for name, text in (("old", TABLE), ("new", TABLE.replace("n = 3", "n = 2"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.md").write_text(text)
    code, lines = compared(tmp_path / "old", tmp_path / "new")
    assert code == 1
    assert lines == ["scores.md: text, 3: 2 -> 1", "scores.md: text, 2: absent -> 1", "2 differences"]
    assert compared(tmp_path / "old", tmp_path / "old") == (0, ["0 differences"])
