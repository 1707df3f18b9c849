"""The quoted numbers: all there, each with its source, conflicts kept, unknown cells empty with a reason."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from results.published import FOLDER, OTHER_SCHEMAS, Cell, PublishedError, conflicts, published_cells, read_published


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    """Return every committed cell."""
    return published_cells()


def value(cells: list[Cell], letter: str, quantity: str, method: str, column: str, **where: object) -> str | None:
    """Return the one printed number that fits, None for an empty cell."""
    found = [
        c for c in cells
        if (c.source.letter, c.series.quantity, c.row.method, c.column) == (letter, quantity, method, column)
        and all(getattr(c.row, name) == wanted for name, wanted in where.items())
    ]  # fmt: skip
    assert len({c.printed for c in found}) == 1, [c.place for c in found]
    return found[0].printed


def test_every_source_has_its_number_of_cells(cells: list[Cell]) -> None:
    known = Counter(cell.source.letter for cell in cells if cell.value is not None)
    # Counted in the tables that were quoted: GaLore table 2, table 6 and appendix, table 4, and the 7B results.
    assert known["G"] == 20 + 20 + 12 + 40 + 4 + 40 + 5 + 5 + 15
    assert known["A"] == 24 + 24 + 3 + 1 + 3 + 10 + 6
    assert known["A-web"] == 4 + 8
    assert known["R"] == 4 + 1 + 4 + 2
    assert known["S"] == 36 + 36 + 12 + 3
    assert known["S-icml"] == 5 + 3
    assert known["T"] == 41 + 41 + 29 + 25
    assert known["GD"] == 54 + 9
    assert known["L"] == 16 + 49 + 6 + 6
    assert (known["M"], known["NA"]) == (6 + 6 + 3, 10 + 3)
    assert known["V"] == 4 + 1 + 1 + 3
    assert (known["F"], known["D"], known["O"], known["P"], known["U"]) == (18 + 3, 8, 8, 10, 1)
    assert known["N"] == 4


@pytest.mark.parametrize(
    ("letter", "quantity", "method", "column", "where", "printed"),
    [
        ("G", "perplexity", "low-rank", "1b", {}, "142.53"),
        ("G", "memory", "galore", "350m", {}, "1.22"),
        ("G", "score", "galore", "mrpc", {"rank": 4}, "92.25"),
        ("G", "score", "lora", "qqp", {"rank": 8}, "91.22"),
        ("G", "average", "full", "average", {}, "86.28"),
        ("G", "state_memory", "galore", "1b", {}, "1.78"),
        ("A", "perplexity", "apollo_mini", "1b", {"setting": "lr 0.02"}, "13.95"),
        ("A", "optimizer_time", "fira", "7b", {}, "3.086"),
        ("R", "perplexity", "galore", "60m", {}, "38.91"),
        ("V", "memory", "velora", "model", {}, "2.23"),
        ("N", "average", "gradnormlorp", "average", {"rank": 8}, "80.65"),
        ("N", "average", "lora", "average", {"rank": 8}, "79.23"),
        ("N", "state_reduction", "gradnormlorp", "up to", {}, "89.5"),
        ("P", "memory", "dora", "test", {}, "22.85"),
        ("T", "loss", "galore", "1b", {}, "6.53"),
        ("T", "memory", "fira", "7b", {}, "47.84"),
        ("T", "training_time", "subtrack", "3b", {}, "1517.6"),
        ("S", "perplexity", "full", "1b", {}, "16.52"),
        ("S-icml", "perplexity", "full", "1b", {}, "15.79"),
        ("S", "perplexity", "scale", "150k", {}, "12.59"),
        ("F", "perplexity", "full", "60m", {}, "34.06"),
        ("GD", "score", "rslora", "rte", {}, "77.62"),
        ("L", "score", "full", "qnli", {}, "86.28"),
        ("M", "state_memory", "galore", "7b", {}, "7177"),
        ("NA", "memory", "adamw8bit", "bert-large", {}, "5.64"),
    ],
)
def test_spot_values(
    cells: list[Cell], letter: str, quantity: str, method: str, column: str, where: dict[str, object], printed: str
) -> None:
    assert value(cells, letter, quantity, method, column, **where) == printed


@pytest.mark.parametrize(
    ("file", "tasks", "misprinted"),
    [("galore_glue.json", 8, set()), ("gdlora_glue.json", 6, set()), ("lotus_glue.json", 8, {("apollo", 4)})],
)
def test_printed_averages_are_the_means_of_their_rows(
    cells: list[Cell], file: str, tasks: int, misprinted: set[tuple[str, int]]
) -> None:
    """Where one is not, the row says that it is a misprint."""
    rows = [c for c in cells if c.file == file]
    wrong = set()
    for average in (c for c in rows if c.series.quantity == "average"):
        same = (average.row.method, average.row.rank)
        scores = [c.value for c in rows if c.series.quantity == "score" and (c.row.method, c.row.rank) == same]
        assert len(scores) == tasks
        mean = sum(score for score in scores if score is not None) / tasks
        # The tables round half a digit either way, hence a little more than half a unit.
        if average.value != pytest.approx(mean, abs=0.0051):
            assert "misprint" in (average.why or "")
            wrong.add(same)
    assert wrong == misprinted


def test_weights_and_state_of_one_paper_sum_to_its_memory(cells: list[Cell]) -> None:
    def of(quantity: str, method: str, size: str) -> float:
        return float(value(cells, "G", quantity, method, size) or "nan")

    for method in ("full", "galore", "lora", "relora", "low-rank"):
        for size in ("60m", "130m", "350m", "1b"):
            whole = of("weight_memory", method, size) + of("state_memory", method, size)
            assert of("memory", method, size) == pytest.approx(whole, abs=0.021), (method, size)


def test_unknown_cells_of_the_method_are_present_and_say_why(cells: list[Cell]) -> None:
    empty = [c for c in cells if c.row.method == "gradnormlorp" and c.value is None]
    tasks = {c.column for c in empty if c.series.quantity == "score" and c.row.rank == 8}
    assert len(tasks) == 9
    assert {c.column for c in empty if c.series.quantity == "perplexity"} >= {"60m", "130m", "350m", "1b", "150k"}
    assert all(c.why and "abstract" in c.why for c in empty)


def test_conflicts_are_kept(cells: list[Cell]) -> None:
    found = {(*group[0].place[:3], group[0].column): {c.printed for c in group} for group in conflicts(cells)}
    assert found["c4", "perplexity", "full", "60m"] == {"34.06", "33.94", "30.05", "33.52"}
    assert found["c4", "perplexity", "fira", "1b"] == {"14.31", "15.10"}
    assert found["c4", "perplexity", "galore", "60m"] == {"34.88", "38.91", "34.58", "31"}
    assert found["c4", "memory", "full", "60m"] == {"0.36", "0.32", "0.35", "0.48", "1.30", "16.86"}
    assert found["c4", "perplexity", "apollo_mini", "130m"] >= {"23.53", "23.84"}
    assert found["glue", "average", "lora", "average"] == {"85.93", "79.23", "83.44"}


def test_every_file_names_source_table_and_status() -> None:
    paths = sorted(path for path in FOLDER.glob("*.json") if path.name not in OTHER_SCHEMAS)
    assert len(paths) > 20
    for path in paths:
        source = read_published(path).source
        assert source.letter
        assert source.place
        assert source.status


def test_claims_of_another_schema_are_left_to_their_reader(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "fira.json", tmp_path)
    (tmp_path / "memory_claims.json").write_text('{"anything": 1}')
    assert {cell.file for cell in published_cells(tmp_path)} == {"fira.json"}


@pytest.mark.parametrize(
    ("printed", "why", "text"),
    [("34,06", {}, "no plain number"), (None, {}, "must say why"), ("about 31", {}, "no plain number")],
)
def test_a_bad_cell_is_refused_by_name(tmp_path: Path, printed: str | None, why: dict[str, str], text: str) -> None:
    table = json.loads((FOLDER / "fira.json").read_text())
    table["series"][0]["rows"][0] |= {"printed": {"350m": printed}, "why": why}
    (tmp_path / "bad.json").write_text(json.dumps(table))
    with pytest.raises(PublishedError, match=rf"bad\.json.*{text}"):
        published_cells(tmp_path)


def test_a_cell_that_stands_twice_is_refused(tmp_path: Path) -> None:
    table = json.loads((FOLDER / "fira.json").read_text())
    table["series"][0]["rows"].append(table["series"][0]["rows"][0])
    (tmp_path / "twice.json").write_text(json.dumps(table))
    with pytest.raises(PublishedError, match="stands twice"):
        published_cells(tmp_path)


def test_rounding_is_half_the_last_printed_digit(cells: list[Cell]) -> None:
    by_printed = {cell.printed: cell.rounding for cell in cells}
    assert by_printed["34.06"] == pytest.approx(0.005)
    assert by_printed["89.5"] == pytest.approx(0.05)
    assert by_printed["747"] == pytest.approx(0.5)
    assert by_printed[None] == 0
