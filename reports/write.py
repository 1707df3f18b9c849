"""One report of any suite: select the records, make its tables and figures, write every file whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.averages.convention import Convention
from reports.figures.front_and_curves import FORMATS, Plot, curve_plot, front_plot, front_points
from reports.figures.parts_and_scores import dots_plot, parts_plot
from reports.figures.tuning import budget_plot, sensitivity_plot
from reports.figures.validation import validation_plot
from reports.gate.fault_table import trial_table
from reports.records.report_runs import Context
from reports.records.selection import ALL, Rank, folder_name, select, table_rank
from reports.records.tuning import Tuning, tuning_of
from reports.tables.ablation import ablation_table
from reports.tables.bench import bench_plot, claims_table, measurements_table, targets_table
from reports.tables.capabilities import capabilities_table
from reports.tables.cost import estimate_table, memory_table, peak_by_task_table, process_table, time_table
from reports.tables.findings import findings_of, findings_table, unordered
from reports.tables.scores import difference_table, score_table, status_table
from reports.tables.table import FORMS, Table, latex_document, to_markdown
from reports.tables.tuning import trials_table, tuned_table
from results.bench import Bench
from results.capabilities import CapabilityMatrix
from results.gate.trial import Trial
from results.schema import Record
from results.search import Search
from results.store import read_single, write_atomically
from results.strict import Strict

COSTS: dict[str, Callable[[Context], Table | None]] = {
    "memory": memory_table, "peaks": peak_by_task_table, "process": process_table, "estimates": estimate_table,
    "time": time_table,
}  # fmt: skip
TUNING: dict[str, Callable[[Context], Table | None]] = {"tuned": tuned_table, "trials": trials_table}
TUNING_PLOTS: dict[str, Callable[[Context], Plot | None]] = {"sensitivity": sensitivity_plot, "budget": budget_plot}
PLOTS: dict[str, Callable[[Context], Plot | None]] = {
    "front": front_plot, "dots": dots_plot, "validation": validation_plot, "parts": parts_plot, "curves": curve_plot,
    **TUNING_PLOTS,
}  # fmt: skip
SCORES = ("scores", "findings", "differences", "ablation", "status")
TABLES = (*SCORES, *COSTS, *TUNING)
WHERE_KNOWN = frozenset({"ablation", *TUNING, *TUNING_PLOTS})
"""What a report has where there are variants of a method, or records of its tuning: not missed where there are none."""
OF_TASKS, OF_ONE_TASK = frozenset({"peaks", "dots"}), frozenset({"validation"})


@dataclass(frozen=True)
class Report:
    """The tables and figures that the records allow, in the order of reading."""

    context: Context
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]

    @property
    def folder(self) -> str:
        """Name of its folder: reports of other profiles and ranks stand beside it."""
        return folder_name(self.context.suite, self.context.profile, self.context.rank, self.context.variant)

    @property
    def undrawn(self) -> str:
        """Why the average is not drawn, where it and peaks are known: the findings are no order of the methods."""
        why = unordered(findings_of(self.context)) if front_points(self.context) else ""
        return f"The average is not drawn against memory: {why} (findings)." if why else ""

    @property
    def absent(self) -> list[str]:
        """Tables and figures that reports of such a suite have and this one does not."""
        made = {table.name for table in self.tables} | {plot.name for plot in self.plots}
        foreign = WHERE_KNOWN | (OF_ONE_TASK if self.context.by_task else OF_TASKS)
        foreign = foreign if self.context.plugin is not None and not self.undrawn else foreign | {"front"}
        return [name for name in (*TABLES, *PLOTS) if name not in made | foreign]

    def table(self, name: str) -> Table | None:
        """Return the table of that name, None where the records do not allow it."""
        return next((table for table in self.tables if table.name == name), None)


def suite_report(
    records: Sequence[Record],
    suite: str,
    profile: str | None = None,
    rank: Rank = None,
    convention: Convention | None = None,
    where: Iterable[str] = (),
    against: str | None = None,
    searches: Sequence[Search] = (),
) -> Report:
    """Return the report of one suite, profile and rank, nothing written yet.

    Args:
        profile: None takes the only one among the records.
        rank: None takes the only one among them, "all" every one: each is a row.
        convention: how runs become scores and scores an average; None is the suite's usual one.
        where: conditions on plans, see `selection.select`.
        against: method of the paired differences; None is the yardstick.
        searches: records of the searches whose trials are among the records.

    Raises:
        ReportError: no record fits, or a plan has two records.
        ChoiceError: unknown row in `against`, or a method with several.
    """
    chosen = select(records, suite, profile, rank, where)
    return report_of(context_of(chosen, rank, convention, tuning_of(records, searches, chosen)), against)


def context_of(
    chosen: Sequence[Record], rank: Rank, convention: Convention | None = None, tuning: Tuning | None = None
) -> Context:
    """Return what all tables and figures of the selected runs share."""
    ranks = [found for record in chosen if (found := table_rank(record)) is not None]
    shown = None if rank == ALL else next(iter(ranks), None if rank is None else int(rank))
    return Context(chosen, chosen[0].plan.profile, shown, convention, tuning)


def report_of(context: Context, against: str | None = None) -> Report:
    """Return the report of a context.

    Raises:
        ChoiceError: unknown method in `against`.
    """
    scores = (score_table(context), findings_table(context), difference_table(context, against),
              ablation_table(context), status_table(context))  # fmt: skip
    tables = (*scores, *(make(context) for make in (*COSTS.values(), *TUNING.values())))
    plots = (make(context) for make in PLOTS.values())
    return Report(context, tuple(t for t in tables if t is not None), tuple(p for p in plots if p is not None))


def forms(tables: Iterable[Table], plots: Iterable[Plot] = ()) -> dict[str, bytes]:
    """Return file name -> content of tables (Markdown, CSV, JSON, LaTeX) and figures (PNG, SVG, PDF)."""
    files: dict[str, bytes] = {}
    for table in tables:
        files |= {f"{table.name}.{ending}": form(table).encode() for ending, form in FORMS.items()}
    for plot in plots:
        files |= {f"{plot.name}.{ending}": content for ending, content in plot.files.items()}
    return files


def report_files(report: Report) -> dict[str, bytes]:
    """Return file name -> content of everything a report writes."""
    files = forms(report.tables, report.plots)
    frames = {"runs.csv": report.context.runs, "metrics.csv": report.context.metrics}
    files |= {name: frame.to_csv(index=False, lineterminator="\n").encode() for name, frame in frames.items()}
    pictures = [(f"{plot.name}.pdf", plot.caption) for plot in report.plots]
    files["report.tex"] = latex_document([table.name for table in report.tables], pictures).encode()
    files["report.md"] = page(
        report.context.heading, report.tables, report.plots, report.absent, report.undrawn
    ).encode()
    return files


def page(
    heading: str, tables: Iterable[Table], plots: Iterable[Plot], absent: Sequence[str] = (), undrawn: str = ""
) -> str:
    """Return tables and figures as one Markdown page, and what is not there."""
    parts = [f"# {heading}\n", *map(to_markdown, tables)]
    parts += [f"![{plot.title}]({plot.name}.png)\n\n{plot.caption}\n" for plot in plots]
    parts += [f"{undrawn}\n"] if undrawn else []
    if absent:
        parts.append(f"Not in this report, since the records hold no values for them: {', '.join(absent)}.\n")
    return "\n".join(parts)


def write_files(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Write every file whole into a folder and return their paths in order.

    Raises:
        StoreError: the folder cannot be written.
    """
    return [write_atomically(folder / name, content) for name, content in files.items()]


def write_report(report: Report, out: Path) -> list[Path]:
    """Write every file of the report into its folder below `out` and return their paths, the page last.

    Each file is written whole or not at all. A table or figure that an earlier report left there and this one does
    not have is removed: it would show other records.

    Raises:
        StoreError: the folder cannot be written.
    """
    folder, files = out / report.folder, report_files(report)
    paths = write_files(folder, files)
    possible = {f"{stem}.{ending}" for stem in TABLES for ending in FORMS}
    possible |= {f"{name}.{ending}" for name in PLOTS for ending in FORMATS}
    for name in possible - set(files):
        (folder / name).unlink(missing_ok=True)
    return paths


@dataclass(frozen=True)
class OneFile:
    """A record that is one file, and what is made of it: the name of its folder, its kind, tables and figure."""

    folder: str
    kind: type[Strict]
    tables: Callable[[Any], Sequence[Table]]
    plot: Callable[[Any], Plot | None] = lambda record: None

    def write(self, record: Path, out: Path) -> list[Path]:
        """Write the tables and the figure below `out` and return their paths.

        Raises:
            StoreError: the record cannot be read, the folder not written.
            ValueError: the record is empty.
        """
        found = read_single(record, self.kind)
        plot = self.plot(found)
        return write_files(out / self.folder, forms(self.tables(found), [] if plot is None else [plot]))


BENCH = OneFile(
    "bench", Bench, lambda found: [targets_table(found), claims_table(found), measurements_table(found)], bench_plot
)
CAPABILITIES = OneFile("capabilities", CapabilityMatrix, lambda found: [capabilities_table(found)])
TRIAL = OneFile("trial", Trial, lambda found: [trial_table(found)])
