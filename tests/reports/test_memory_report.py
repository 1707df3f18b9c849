"""The memory report: from the committed cells, and without what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports.__main__ import app
from reports.tables.lab import LADDER, build_memory_report, ladder_table, load, models_of, overview_table, step_bytes

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results" / "reference" / "memory"
SNAPSHOT = ROOT / "reports" / "snapshot"


def test_the_snapshot_is_what_the_records_give(tmp_path: Path) -> None:
    paths = build_memory_report(REFERENCE, tmp_path)
    assert {path.name for path in paths} == {path.name for path in (SNAPSHOT / "memory").iterdir()}
    for path in paths:
        if path.suffix in (".md", ".csv", ".tex"):
            assert path.read_bytes() == (SNAPSHOT / "memory" / path.name).read_bytes(), path.name


def test_the_ladder_adds_up() -> None:
    cells, _ = load(REFERENCE)
    (row,) = ladder_table(cells, ["7b"], LADDER, "ladder").data.to_dict("records")
    peaks = [row[f"{title}, bytes"] for title in LADDER]
    assert peaks == [step_bytes(cells["7b", *rung]) for rung in LADDER.values()]
    assert peaks[-1] < peaks[0]


def test_models_come_by_size_and_a_missing_cell_is_a_dash() -> None:
    cells, _ = load(REFERENCE)
    models = models_of(cells.values())
    assert models.index("130m") < models.index("350m") < models.index("7b")
    del cells["7b", "lora", 8, True, True]
    table = overview_table(cells, ["7b"])
    (row,) = [row for row in table.rows if row[0].text == "7b: LoRA"]
    assert row[-1].text == "—"


def test_a_folder_without_cells_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["memory", "--records", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no memory cells" in result.stderr


@pytest.mark.parametrize("broken", ["{", '{"cells": 3}'])
def test_a_broken_file_is_an_error(broken: str, tmp_path: Path) -> None:
    (tmp_path / "60m.json").write_text(broken)
    result = CliRunner().invoke(app, ["memory", "--records", str(tmp_path)])
    assert result.exit_code == 2
    assert "60m.json" in result.stderr
