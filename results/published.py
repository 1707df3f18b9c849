"""Numbers printed in papers and result files of others, as data; no number here was measured by this suite.

One JSON file a source and subject. A cell keeps the text as printed, so that its rounding is known; a cell that
nobody found is present with None and says why. Where sources disagree, both stand: nothing is averaged or corrected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from results.schema import Strict

FOLDER = Path(__file__).parent / "published"
# Claims recomputed under several accountings, and protocols: other schemas, read by their own functions.
OTHER_SCHEMAS = frozenset({"devices.json", "memory_claims.json", "protocols.json"})
NUMBER = re.compile(r"-?\d+(\.\d+)?")

Benchmark = Literal["glue", "c4", "c4-7b", "commonsense", "metamathqa", "alpaca", "claims"]
Quantity = Literal[
    "score", "average", "perplexity", "loss", "memory", "weight_memory", "state_memory", "state_saving",
    "gradient_saving", "state_reduction", "throughput", "optimizer_time", "training_time", "claim", "rank", "width",
    "tokens", "parameters",
]  # fmt: skip
Unit = Literal[
    "percent", "perplexity", "nats", "M", "MiB", "G", "GB", "GiB", "tokens/s", "s", "h", "billions", "count"
]  # fmt: skip
Basis = Literal["estimated", "measured", "as printed", "unknown"]
Status = Literal["paper full text", "abstract", "project page", "result files", "third-party notes", "issue thread"]
Printed = str | None


class Source(Strict):
    """Where the numbers were read. `letter` is the source's short name in tables."""

    letter: str
    name: str
    place: str = Field(description="table, section or file")
    status: Status
    url: str | None = None


class PublishedRow(Strict):
    """One method of one published table.

    Attributes:
        method: the suite's name where it is one of ours, else a name in the same style.
        setting: what tells rows of one method apart, as "8-bit" or "half rank"; "" for none.
        printed: column -> the number as printed, without its unit; None where none was found.
        why: column -> why there is none, or what a reader must know about the number; "*" speaks for all columns.
    """

    method: str
    title: str
    rank: int | None = None
    setting: str = ""
    printed: dict[str, Printed]
    why: dict[str, str] = {}

    @model_validator(mode="after")
    def _complete(self) -> PublishedRow:
        for column, text in self.printed.items():
            if text is not None and not NUMBER.fullmatch(text):
                raise ValueError(f"{column}: {text!r} is no plain number such as 34.06")
            if text is None and not (self.why.get(column) or self.why.get("*")):
                raise ValueError(f"{column}: an empty cell must say why")
        return self


class Series(Strict):
    """Cells that share what they measure and how: one quantity, unit and rule."""

    quantity: Quantity
    unit: Unit
    basis: Basis
    metric: str | None = None
    split: str | None = None
    epoch_rule: str | None = None
    seeds: int | None = Field(default=None, ge=1, description="runs behind one number; None: not stated")
    scope: str | None = Field(default=None, description="what a memory figure counts, as stated")
    notes: list[str] = []
    rows: list[PublishedRow] = Field(min_length=1)


class Published(Strict):
    """One file."""

    benchmark: Benchmark
    source: Source
    model: str | None = None
    protocol: list[str] = []
    series: list[Series] = Field(min_length=1)


@dataclass(frozen=True)
class Cell:
    """One published number with everything that says what it is; `value` is None where none was found."""

    file: str
    benchmark: str
    model: str | None
    source: Source
    series: Series
    row: PublishedRow
    column: str

    @property
    def printed(self) -> str | None:
        """The number as printed."""
        return self.row.printed[self.column]

    @property
    def value(self) -> float | None:
        """The number."""
        return None if self.printed is None else float(self.printed)

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit; 0 for an empty cell."""
        if self.printed is None:
            return 0.0
        return 0.5 * 10.0 ** -len(self.printed.partition(".")[2])

    @property
    def why(self) -> str | None:
        """What must be known about this cell, or why it is empty."""
        return self.row.why.get(self.column) or self.row.why.get("*")

    @property
    def place(self) -> tuple[str, str, str, int | None, str, str]:
        """What the number is about, so that sources can be compared: equal places should hold equal numbers."""
        row, series = self.row, self.series
        return (self.benchmark, series.quantity, row.method, row.rank, row.setting, self.column)


class PublishedError(ValueError):
    """A file of published numbers that does not follow the schema."""


def read_published(path: Path) -> Published:
    """Return one file.

    Raises:
        PublishedError: naming the file, the field and the rule.
    """
    try:
        return Published.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise PublishedError(f"{path}: not a file of published numbers: {where}: {first['msg']}") from error


def published_cells(folder: Path = FOLDER) -> list[Cell]:
    """Return every cell of every file, files by name, cells in their order.

    Raises:
        PublishedError: a file breaks the schema, or the same source and table holds a place twice.
    """
    cells: list[Cell] = []
    for path in sorted(folder.glob("*.json")):
        if path.name in OTHER_SCHEMAS:
            continue
        table = read_published(path)
        found = [
            Cell(path.name, table.benchmark, table.model, table.source, series, row, column)
            for series in table.series
            for row in series.rows
            for column in row.printed
        ]
        _refuse_twice(path, found)
        cells += found
    return cells


def _refuse_twice(path: Path, cells: Iterable[Cell]) -> None:
    seen: set[tuple[object, ...]] = set()
    for cell in cells:
        key = (*cell.place, cell.series.basis, cell.series.unit, cell.series.scope)
        if key in seen:
            raise PublishedError(f"{path}: {' '.join(str(part) for part in key)} stands twice")
        seen.add(key)


def conflicts(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Return the places for which tables of different origin print different numbers, each with all its cells.

    A setting such as another learning rate does not make another place: it is often the reason, and is shown.
    """
    places: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        if cell.value is not None:
            benchmark, quantity, method, rank, _, column = cell.place
            places.setdefault((benchmark, quantity, method, rank, column), []).append(cell)
    return [
        found
        for found in places.values()
        if len({cell.value for cell in found}) > 1 and len({(c.source.letter, c.source.place) for c in found}) > 1
    ]
