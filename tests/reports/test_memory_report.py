"""The memory report: from the committed cells, and without what is missing."""

from __future__ import annotations

import shutil
from dataclasses import replace
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
    # Tables that were written beside cells are no cells.
    place = paths[0].parent
    assert list(place.glob("*.table.json"))
    shutil.copy(REFERENCE / "9m.json", place)
    assert {key[0] for key in load(place).cells} == {"9m"}


def test_the_ladder_adds_up() -> None:
    lab = load(REFERENCE)
    ladder, reordered = ladders(lab.catalogue, lab.methods)
    assert set(reordered) < set(ladder)
    (row,) = ladder_table(lab, ["7b"], ladder, "ladder").data.to_dict("records")
    peaks = [size for title in ladder if (size := row.get(f"{title}, bytes")) is not None]
    keys = dict.fromkeys(lab.find("7b", *rung) for rung in ladder.values())
    assert peaks == [step_bytes(lab.cells[key]) for key in keys]
    assert peaks[-1] < peaks[0]


def test_parts_made_again_are_a_rung_each_where_the_model_has_them() -> None:
    lab = load(REFERENCE)
    lab = replace(lab, cells={key: cell for key, cell in lab.cells.items() if not key[-1]})
    ladder, _ = ladders(lab.catalogue, lab.methods)
    plain = ladder_table(lab, ["7b", "roberta-base"], ladder, "ladder")
    assert "MLP made again" not in plain.heads
    assert "recompute" not in overview_table(lab, ["7b"]).heads
    steps = {
        "7b": [("loss",), ("norms", "loss"), ("norms", "mlp", "loss")],
        "roberta-base": [("norms",), ("norms", "mlp")],
    }
    for model, rungs in steps.items():
        cell = lab.cells[model, "gradnormlorp", 8, True, False, ()]
        for count, again in enumerate(rungs, 1):
            less = cell.peak.model_copy(update={"activation_bytes": cell.peak.activation_bytes - count * 2**30})
            lighter = cell.model_copy(update={"peak": less, "phases": {}})
            lab.cells[model, "gradnormlorp", 8, True, False, again] = lighter
    table = ladder_table(lab, ["7b", "roberta-base"], ladder, "ladder")
    first = table.heads.index("loss by chunks")
    said = {row[0].text: [entry.text for entry in row[first : first + 3]] for row in table.rows}
    assert all("−1.00" in text for text in said["7b"][1:])
    assert said["roberta-base"][0] == "—"
    assert all("−1.00" in text for text in said["roberta-base"][2:])
    assert not any("-" in text for texts in said.values() for text in texts)


def test_without_a_method_of_each_kind_there_is_no_ladder() -> None:
    lab = load(REFERENCE)
    assert ladders(lab.catalogue, ["full", "galore"]) == ({}, {})


def test_models_come_by_size_and_a_missing_cell_is_a_dash() -> None:
    lab = load(REFERENCE)
    assert lab.models.index("130m") < lab.models.index("350m") < lab.models.index("7b")
    del lab.cells["7b", "lora", 8, True, True, ()]
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
