"""The papers' tables cell by cell: published, ours, difference, verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from reports.paper import our_numbers as answers
from reports.paper.agreement import Agreement, Ours, judge
from reports.paper.our_numbers import Answer, PaperRuns
from results.catalogue import committed
from results.protocols import read_protocols
from results.published import Cell

SIZES = {"60m": "60M", "130m": "130M", "350m": "350M", "1b": "1B"}
STEPS = {"40k": "40K steps", "80k": "80K", "120k": "120K", "150k": "150K"}


@dataclass(frozen=True)
class ComparedCell:
    """One cell with our side and the verdict."""

    cell: Cell
    ours: Ours | None
    verdict: Agreement


@dataclass(frozen=True)
class PaperRow:
    """One method as one source prints it."""

    title: str
    method: str
    source: str
    scope: str
    cells: dict[str, ComparedCell]

    @property
    def words(self) -> list[str]:
        """The distinct verdicts of the row."""
        return list(dict.fromkeys(judged.verdict.word for judged in self.cells.values()))


@dataclass(frozen=True)
class PaperTable:
    """One table of the papers, rows in the order of methods."""

    name: str
    title: str
    what: str
    columns: dict[str, str]
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def cells(self) -> list[ComparedCell]:
        """Every cell, row by row."""
        return [judged for row in self.rows for judged in row.cells.values()]


@dataclass(frozen=True)
class Shape:
    """What a table takes from the published cells, and what answers them."""

    name: str
    title: str
    what: str
    columns: dict[str, str]
    benchmark: str
    answer: Mapping[str, Answer]
    rank: int | None = None
    only_ours: bool = False

    def takes(self, cell: Cell) -> bool:
        """Whether the cell belongs into this table."""
        if (
            cell.benchmark != self.benchmark
            or cell.series.quantity not in self.answer
            or cell.column not in self.columns
        ):
            return False
        if self.rank is None:
            return True
        return cell.row.rank == self.rank or (cell.row.rank is None and cell.row.method in RANKLESS)


# Methods without a rank belong to the tables of every rank; for any other a missing rank is merely unknown.
RANKLESS = frozenset(method.name for method in committed().methods if not method.ranked)
BYTES = dict.fromkeys(("memory", "weight_memory", "state_memory"), answers.c4_memory)


def _glue_shape(rank: int) -> Shape:
    score: Answer = partial(answers.glue_score, rank=rank)
    tasks = {task.name: task.title for task in committed().suite("glue").tasks}
    return Shape(
        f"glue-rank{rank}", f"GLUE, rank {rank}", "scores in percent on the validation split",
        {**tasks, "average": "Average"}, "glue", {"score": score, "average": score}, rank,
    )  # fmt: skip


SHAPES: tuple[Shape, ...] = (
    _glue_shape(8),
    _glue_shape(4),
    Shape("glue-memory", "GLUE, memory", "memory of RoBERTa-base fine-tuning, estimated or measured on the device",
          {"model": "Memory"}, "glue", {"memory": answers.glue_memory}),
    Shape("c4-perplexity", "C4, perplexity", "validation perplexity of LLaMA pre-training, lower is better",
          SIZES, "c4", {"perplexity": answers.c4_perplexity}),
    Shape("c4-memory", "C4, memory", "memory of LLaMA pre-training",
          SIZES, "c4", BYTES),
    Shape("llama-7b-perplexity", "LLaMA 7B, perplexity", "validation perplexity at four steps, lower is better",
          STEPS, "c4-7b", {"perplexity": answers.seven_perplexity}),
    Shape("llama-7b-memory", "LLaMA 7B, memory", "memory of 7B pre-training; each source counts something else",
          {"7b": "Memory"}, "c4-7b", dict.fromkeys(("memory", "state_memory"), answers.seven_memory)),
    Shape("optimizer-memory", "Optimizer memory, reduction", "reduction of optimizer memory against AdamW in percent",
          {"up to": "Up to"}, "claims", {"state_reduction": answers.state_reduction}),
)  # fmt: skip


def paper_tables(cells: Sequence[Cell], paper_runs: PaperRuns) -> list[PaperTable]:
    """Return every table of the papers with its verdicts; a published cell stands in each table that takes it."""
    return [_table(shape, [cell for cell in cells if shape.takes(cell)], paper_runs) for shape in SHAPES]


def elsewhere(cells: Sequence[Cell]) -> list[Cell]:
    """Return the published cells that no table takes: this suite does not run what they are about."""
    return [cell for cell in cells if not any(shape.takes(cell) for shape in SHAPES)]


def _table(shape: Shape, cells: Sequence[Cell], paper_runs: PaperRuns) -> PaperTable:
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        row, series = cell.row, cell.series
        memory = "memory" in series.quantity
        # Scores and their average are two series of one row; kinds of memory are rows of their own.
        kind = (series.quantity, series.basis, series.scope) if memory else ()
        groups.setdefault((row.method, cell.file, row.title, row.rank, row.setting, kind), []).append(cell)
    order = committed().ordered(str(key[0]) for key in groups)
    found = sorted(groups.values(), key=lambda group: order.index(group[0].row.method))
    rows = tuple(_row(shape, group, paper_runs) for group in found)
    return PaperTable(shape.name, shape.title, shape.what, _present(shape, cells), rows, _notes(cells))


def _present(shape: Shape, cells: Iterable[Cell]) -> dict[str, str]:
    used = {cell.column for cell in cells}
    return {key: title for key, title in shape.columns.items() if key in used}


def _row(shape: Shape, group: Sequence[Cell], paper_runs: PaperRuns) -> PaperRow:
    first = group[0]
    judged = {}
    for cell in group:
        ours = shape.answer[cell.series.quantity](cell, paper_runs)
        verdict = judge(cell.value, cell.rounding, cell.series.seeds, ours, _margin(cell))
        judged[cell.column] = ComparedCell(cell, ours, verdict)
    rank = f", rank {first.row.rank}" if first.row.rank is not None and shape.rank is None else ""
    scope = first.series.scope or ""
    if (basis := _basis(first)) and not scope.startswith(basis):
        scope = f"{basis}, {scope}" if scope else basis
    ordered = {column: judged[column] for column in shape.columns if column in judged}
    return PaperRow(f"{first.row.title}{rank}", first.row.method, first.source.letter, scope, ordered)


def _margin(cell: Cell) -> float:
    """Return the stated equivalence margin of a published number; 0 where its benchmark has none."""
    protocol = read_protocols().get(cell.benchmark.partition("-")[0])
    return 0.0 if protocol is None or cell.value is None else protocol.margin(cell.series.quantity, cell.value)


def _basis(cell: Cell) -> str | None:
    return cell.series.basis if "memory" in cell.series.quantity and cell.series.basis != "unknown" else None


def _notes(cells: Sequence[Cell]) -> tuple[str, ...]:
    notes = []
    names = {cell.source.letter: cell.source for cell in cells}
    places: dict[str, list[str]] = {}
    for cell in cells:
        places.setdefault(cell.source.letter, []).append(cell.source.place)
    for letter, source in sorted(names.items()):
        where = ", ".join(dict.fromkeys(places[letter]))
        notes.append(f"[{letter}] {source.name}: {where} ({source.status})")
    remarks: dict[str, list[str]] = {}
    for cell in cells:
        if cell.why:
            remarks.setdefault(cell.why, []).append(f"{cell.row.title} [{cell.source.letter}]")
    notes += [f"{', '.join(dict.fromkeys(titles))}: {why}" for why, titles in remarks.items()]
    notes += dict.fromkeys(f"[{c.source.letter}] {text}" for c in cells for text in c.series.notes)
    return tuple(notes)
