"""The memory report: from the committed cells, and without what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports.__main__ import app
from reports.tables.memory_lab import build_memory_report, ladder_table, ladders, load, overview_table, step_bytes

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results" / "reference" / "memory"
SNAPSHOT = ROOT / "reports" / "snapshot"


def test_the_snapshot_is_what_the_records_give(tmp_path: Path) -> None:
    paths = build_memory_report(REFERENCE, tmp_path)
    kept = {path.name for path in (SNAPSHOT / "memory").iterdir() if path.suffix in (".md", ".png")}
    assert {path.name for path in paths if path.suffix in (".md", ".png")} == kept
    for path in paths:
        if path.suffix == ".md":
            assert path.read_bytes() == (SNAPSHOT / "memory" / path.name).read_bytes(), path.name


def test_the_ladder_adds_up() -> None:
    lab = load(REFERENCE)
    ladder, reordered = ladders(lab.catalogue, lab.methods)
    assert sorted(ladder) == sorted(reordered)
    (row,) = ladder_table(lab, ["7b"], ladder, "ladder").data.to_dict("records")
    peaks = [row[f"{title}, bytes"] for title in ladder]
    assert peaks == [step_bytes(lab.cells["7b", *rung]) for rung in ladder.values()]
    assert peaks[-1] < peaks[0]


def test_without_a_method_of_each_kind_there_is_no_ladder() -> None:
    lab = load(REFERENCE)
    assert ladders(lab.catalogue, ["full", "galore"]) == ({}, {})


def test_models_come_by_size_and_a_missing_cell_is_a_dash() -> None:
    lab = load(REFERENCE)
    assert lab.models.index("130m") < lab.models.index("350m") < lab.models.index("7b")
    del lab.cells["7b", "lora", 8, True, True]
    table = overview_table(lab, ["7b"])
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
