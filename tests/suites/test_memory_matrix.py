"""The matrix of the lab: shared out to processes it holds what one process makes, and only what is missing is made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from baselines.registry import methods
from results.lab import MemoryCell, Setting, read_cell_file, read_cells, write_cells
from suites.__main__ import app
from suites.lab import matrix
from suites.lab.networks import Network

METHODS = ("full", "lora")


@pytest.fixture(scope="module")
def small_settings() -> Iterator[None]:
    def two(network: Network, method: str) -> Iterator[Setting]:
        for checkpointing in (False, True):
            yield Setting(model=network.name, method=method, rank=4, batch=2, sequence=8, checkpointing=checkpointing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "settings_of", two)
        yield


@pytest.fixture(scope="module")
def alone(small_settings: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int]]]:
    """The file of cells that one process makes, and how far it said to be after each."""
    said: list[tuple[int, int]] = []
    folder = tmp_path_factory.mktemp("alone")
    paths = matrix.run_matrix(["micro"], METHODS, folder, lambda _, done, total: said.append((done, total)))
    return paths[0], said


def without_time(cells: list[MemoryCell]) -> list[MemoryCell]:
    return [cell.model_copy(update={"seconds": 0.0}) for cell in cells]


@pytest.mark.slow
def test_two_processes_make_the_cells_of_one_in_the_same_order(alone: tuple[Path, Any], tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    paths = matrix.run_matrix(["micro"], METHODS, tmp_path, lambda _, done, total: said.append((done, total)), 2)
    one, two = (read_cells(path) for path in (alone[0], paths[0]))
    assert without_time(one) == without_time(two)
    assert [cell.setting.method for cell in one] == ["full", "full", "lora", "lora"]
    assert said == alone[1] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_only_missing_cells_are_made_and_others_stay(alone: tuple[Path, Any], tmp_path: Path) -> None:
    said: list[tuple[MemoryCell, int, int]] = []
    path = Path(shutil.copy(alone[0], tmp_path))
    cells = read_cells(path)
    elsewhere = cells[0].model_copy(update={"setting": cells[0].setting.model_copy(update={"batch": 3})})
    write_cells(path, [elsewhere, *cells[:2], cells[3]])
    matrix.run_matrix(["micro"], METHODS, tmp_path, lambda *words: said.append(words))
    assert [(cell.setting, done, total) for cell, done, total in said] == [(cells[2].setting, 4, 4)]
    assert without_time(read_cells(path)) == without_time([*cells, elsewhere])
    known = read_cell_file(path).catalogue
    assert known is not None
    assert [method.title for method in known.methods] == ["Full fine-tuning", "LoRA"]


def test_all_methods_are_every_one_controls_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(matrix, "run_matrix", lambda *given: asked.append(given[1]) or [])
    assert CliRunner().invoke(app, ["memory-matrix", "--model", "micro", "--method", "all"]).exit_code == 0
    assert asked == [list(methods())]
    assert any(each.control for each in methods().values())


@pytest.mark.parametrize(
    ("models", "names", "workers", "words"),
    [
        (["roberta-bose"], [], 1, "roberta-base"),
        (["micro"], ["lorra"], 1, "lora"),
        (["micro"], [], 0, "workers 0: must be at least 1"),
    ],
)
def test_bad_input_is_refused(models: list[str], names: list[str], workers: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        matrix.run_matrix(models, names, tmp_path, lambda *_: None, workers)
    assert not list(tmp_path.iterdir())
