"""One report: select the records, make its tables and figures, write every file whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.averages.glue import Convention
from reports.figures.bars import dots_plot, parts_plot
from reports.figures.lines import Plot, curve_plot, front_plot
from reports.records.context import Context
from reports.records.selection import ReportError, select, table_rank
from reports.tables.cost import estimate_table, memory_table, peak_by_task_table, process_table, time_table
from reports.tables.pretraining import Pretraining, loss_differences, perplexity_table, validation_plot
from reports.tables.render import Table, latex_document, to_csv, to_latex, to_markdown
from reports.tables.scores import difference_table, score_table, status_table
from results.schema import Record
from results.store import write_atomically

STEMS = ("scores", "differences", "status", "memory", "peaks", "process", "estimates", "time")
FIGURES = ("front", "curves", "parts", "dots")
PRETRAINING_NAMES = (*(name for name in STEMS if name != "peaks"), "validation", "curves", "parts")


@dataclass(frozen=True)
class Report:
    """The tables and figures that the records allow, in the order of reading."""

    context: Context
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]
    names: tuple[str, ...] = (*STEMS, *FIGURES)

    @property
    def folder(self) -> str:
        """Name of its folder: reports of other profiles and ranks stand beside it."""
        return re.sub(r"[^\w.-]+", "-", f"{self.context.suite}-{self.context.profile}-r{self.context.rank}")

    def table(self, name: str) -> Table | None:
        """Return the table of that name, None where the records do not allow it."""
        return next((table for table in self.tables if table.name == name), None)


def glue_report(
    records: Sequence[Record],
    profile: str | None,
    rank: int,
    convention: Convention | None = None,
    where: Iterable[str] = (),
    against: str | None = None,
) -> Report:
    """Return the report of one profile and rank, nothing written yet.

    Args:
        profile: None takes the only one among the records.
        convention: how runs become scores and scores an average; None is the default one.
        where: conditions on plans, see `selection.select`.
        against: method of the paired differences; None is full fine-tuning.

    Raises:
        ReportError: no record fits, or two fit the same place.
        ChoiceError: unknown method in `against`.
    """
    chosen = select(records, "glue", profile, rank, where)
    context = Context(chosen, chosen[0].plan.profile, rank, convention or Convention())
    if not context.grid:
        raise ReportError(f"no run of a GLUE task: tasks are {', '.join(context.convention.names)}")
    makers = (memory_table, peak_by_task_table, process_table, estimate_table, time_table)
    scores = (score_table(context), difference_table(context, against), status_table(context))
    tables = (*scores, *(make(context) for make in makers))
    plots = (front_plot(context), dots_plot(context), parts_plot(context), curve_plot(context))
    return Report(context, tuple(t for t in tables if t is not None), tuple(p for p in plots if p is not None))


def c4_report(
    records: Sequence[Record],
    profile: str | None,
    rank: int | None,
    where: Iterable[str] = (),
    against: str | None = None,
) -> Report:
    """Return the pre-training report of one profile and rank, nothing written yet; arguments as for `glue_report`.

    Raises:
        ReportError: no record fits, or two fit the same place.
        ChoiceError: unknown method in `against`.
    """
    chosen = select(records, Pretraining.suite, profile, rank, where)
    ranks = [found for record in chosen if (found := table_rank(record)) is not None]
    context = Pretraining(chosen, chosen[0].plan.profile, rank if rank is not None else next(iter(ranks), 0))
    tables = (perplexity_table(context), loss_differences(context, against), status_table(context))
    tables = (*tables, *(make(context) for make in (memory_table, process_table, estimate_table, time_table)))
    plots = (validation_plot(context), curve_plot(context), parts_plot(context))
    kept = tuple(table for table in tables if table is not None)
    return Report(context, kept, tuple(p for p in plots if p is not None), PRETRAINING_NAMES)


def report_files(report: Report) -> dict[str, bytes]:
    """Return file name -> content of everything a report writes."""
    files: dict[str, bytes] = {}
    for table in report.tables:
        forms = {"md": to_markdown(table), "csv": to_csv(table), "tex": to_latex(table)}
        files |= {f"{table.name}.{ending}": text.encode() for ending, text in forms.items()}
    for plot in report.plots:
        files |= {f"{plot.name}.png": plot.png, f"{plot.name}.svg": plot.svg}
    frames = {"runs.csv": report.context.runs, "metrics.csv": report.context.metrics}
    files |= {name: frame.to_csv(index=False, lineterminator="\n").encode() for name, frame in frames.items()}
    pictures = [(f"{plot.name}.png", plot.caption) for plot in report.plots]
    files["report.tex"] = latex_document([table.name for table in report.tables], pictures).encode()
    files["report.md"] = _page(report).encode()
    return files


def _page(report: Report) -> str:
    context = report.context
    parts = [
        f"# {context.suite_title}, profile {context.profile}, rank {context.rank}\n",
        *(to_markdown(t) for t in report.tables),
    ]
    parts += [f"![{plot.title}]({plot.name}.png)\n\n{plot.caption}\n" for plot in report.plots]
    made = {table.name for table in report.tables} | {plot.name for plot in report.plots}
    absent = [name for name in report.names if name not in made]
    if absent:
        parts.append(f"Not in this report, since the records hold no values for them: {', '.join(absent)}.\n")
    return "\n".join(parts)


def write_report(report: Report, out: Path) -> list[Path]:
    """Write every file of the report into its folder below `out` and return their paths, the page last.

    Each file is written whole or not at all. A table or figure that an earlier report left there and this one does
    not have is removed: it would show other records.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder = out / report.folder
    files = report_files(report)
    paths = [write_atomically(folder / name, content) for name, content in files.items()]
    for name in _possible() - set(files):
        (folder / name).unlink(missing_ok=True)
    return paths


def _possible() -> set[str]:
    tables = {f"{stem}.{ending}" for stem in STEMS for ending in ("md", "csv", "tex")}
    return tables | {f"{name}.{ending}" for name in (*FIGURES, "validation") for ending in ("png", "svg")}


def build_glue_report(records: Sequence[Record], out: Path, profile: str | None, rank: int) -> list[Path]:
    """Make and write the report of one profile and rank under the default convention; return the paths, the page last.

    Raises:
        ReportError: no record fits.
        StoreError: the folder cannot be written.
    """
    return write_report(glue_report(records, profile, rank), out)
