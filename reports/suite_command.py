"""`python -m reports SUITE` for every suite that the catalogue or the records know, with the options it needs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from reports.averages.convention import Convention, choices, convention_of
from reports.records.frames import described
from reports.records.reading import read_searches
from reports.records.selection import existing, parse_rank
from reports.tables.table import to_screen
from reports.write import Report, suite_report, write_report
from results.catalogue import SuiteEntry, committed
from results.choice import check_choice
from results.ending import one_line_errors
from results.schema import Record
from results.store import read_records

RECORDS = Path("results/runs")
BUILD = Path("reports/build")
Records = Annotated[
    list[Path] | None,
    typer.Option(metavar="PATH", help=f"Folder or file of records; may be given several times [{RECORDS}]."),
]
Against = Annotated[
    str | None, typer.Option(metavar="ROW", help="Row of the paired differences, by name or title [the yardstick].")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=VALUE",
        help="Keep plans with this setting, such as training.state_bits=32; repeatable. Without it each is a row.",
    ),
]


class SuiteCommands(TyperGroup):
    """Any other word is a suite: a command is made for it, and its records are looked for."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name."""
        return super().get_command(ctx, cmd_name) or _as_click(cmd_name, self.commands)


def register(app: typer.Typer) -> None:
    """Add a command for each suite of the committed catalogue to the command line of the reports."""
    for suite in committed().suites:
        app.command(suite.name)(suite_command(suite))


def _as_click(suite: str, others: Iterable[str]) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(suite)(suite_command(committed().suite(suite), others))
    return typer.main.get_command(app)


def suite_command(entry: SuiteEntry, others: Iterable[str] = ()) -> Callable[..., None]:
    """Return the command of one suite; it has an option for each choice that its average leaves.

    Args:
        others: names of the commands that the suite's name may be a slip of.
    """
    offered = {} if entry.average is None else choices(entry)

    def command(**given: Any) -> None:
        with one_line_errors():
            roots = given["records"] or [RECORDS]
            if not all(root.exists() for root in roots):
                # Any word may be a suite of the records; without records it is one that is known, or a slip.
                check_choice(entry.name, [*(known.name for known in committed().suites), *others], "suite or command")
            loaded = read_records(existing(roots))
            chosen = {name: given[name] for name in (*offered, "seeds") if name in given}
            report = suite_report(
                loaded, entry.name, given["profile"], parse_rank(given["rank"]),
                _convention(loaded, entry.name, chosen) if offered else None, given["where"] or (), given["against"],
                read_searches(roots),
            )  # fmt: skip
            paths = write_report(report, given["out"])
        show(report, paths)

    parameters = list(_parameters(entry, offered))
    command.__doc__ = _help(entry, offered)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _convention(records: list[Record], suite: str, chosen: dict[str, Any]) -> Convention:
    """Return the convention under what the records themselves say of the suite."""
    return convention_of(described(records).suite(suite), **{name: v for name, v in chosen.items() if v is not None})


def shown_options(suite: str) -> list[str]:
    """Return the options of a suite's report by which a person chooses what it shows, not which runs it is of."""
    entry = committed().suite(suite)
    offered = {} if entry.average is None else choices(entry)
    return [*offered, "against", "where"]


def _parameters(entry: SuiteEntry, offered: dict[str, tuple[object, ...]]) -> Iterator[inspect.Parameter]:
    def option(name: str, kind: Any, help_text: str, default: Any = None, metavar: str | None = None) -> Any:
        annotation = Annotated[kind, typer.Option(help=help_text, metavar=metavar)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    known = "may be left out where the records hold one only."
    yield inspect.Parameter("records", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Records)
    yield option("profile", str | None, f"Profile of the runs; {known}")
    yield option("rank", str | None, f"Rank of the runs, or all: a row each; {known} A method without one is in all.")
    yield option("out", Path, f"Folder for the report: OUT/{entry.name}-PROFILE-rRANK/.", BUILD)
    for name, values in offered.items():
        words = ", ".join(map(str, values))
        what = {"epoch": "Evaluation that counts", "tasks": "Tasks in the average"}.get(name)
        yield option(name, int | None if name == "tasks" else str | None, f"{what or entry.task_title(name)}: {words}.")
    if offered:
        yield option("seeds", str | None, "same: an average needs equal seeds on all tasks; shared: those all have.")
    yield inspect.Parameter("against", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Against)
    yield inspect.Parameter("where", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Where)


def _help(entry: SuiteEntry, offered: dict[str, tuple[object, ...]]) -> str:
    example = f"python -m reports {entry.name} --profile paper"
    reading = next((f" --{name} {values[-1]}" for name, values in offered.items() if entry.task(name)), "")
    return (
        f"Write the tables (Markdown, CSV, JSON, LaTeX) and figures (PNG, SVG, PDF) of {entry.title} runs.\n\n"
        "Scores are mean and standard deviation over seeds. Memory is measured; estimates stand in a table of their "
        "own. The same records give the same bytes. Prints the paths last, report.md's at the end.\n\n"
        f"Example: {example}{reading}"
    )


def show(report: Report, paths: list[Path]) -> None:
    """Print the first tables, and the paths of what to read."""
    console = Console()
    for name in ("scores", "memory"):
        if (table := report.table(name)) is not None:
            console.print(to_screen(table, console.width))
    sys.stdout.write(
        "each table also as .csv, .table.json and .tex, each figure also as .svg and .pdf; all of it on one page: "
        "report.md\n"
    )
    sys.stdout.write("".join(f"{path}\n" for path in paths if path.suffix in (".md", ".png")))
