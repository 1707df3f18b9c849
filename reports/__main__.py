"""Command line: `python -m reports glue --records results/runs --profile micro --rank 8`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reports.documents import documents, filled
from reports.gate.command import register as register_gate
from reports.paper.write import paper as make_paper
from reports.paper.write import trouble_lines, write_paper, write_reports
from reports.records.peft_results import read_foreign
from reports.records.reading import gather
from reports.records.selection import existing
from reports.suite_command import Against, SuiteCommands, Where, shown_options
from reports.suite_command import register as register_suites
from reports.tables.memory_lab import build_memory_report
from reports.tables.table import to_screen
from reports.write import BENCH, CAPABILITIES, TRIAL
from results.ending import completion, interrupted_early, one_line_errors, run, version_line
from results.published import published_cells

app = typer.Typer(cls=SuiteCommands, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda on: _print_version(on), help="Print versions.")
    ] = False,
) -> None:
    """Tables and figures from records alone. Reads JSON records, trains nothing, needs no torch.

    Start with: python -m reports glue --records results/runs
    """


register_suites(app)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"{version_line(('gnlorp', 'pandas', 'matplotlib'))}\n")
        raise typer.Exit


@app.command("completion")
def completion_script(shell: Annotated[str, typer.Argument(help="bash, zsh or fish")] = "bash") -> None:
    """Print a script that makes `reports` a short form of `python -m reports` and completes it; bash: eval it."""
    with one_line_errors():
        sys.stdout.write(completion("reports", shell))


@app.command()
def options(suite: Annotated[str, typer.Argument(help="suite of the report")]) -> None:
    """Print the options of a suite's report that say what it shows: what nox hands on to it from its own line."""
    with one_line_errors():
        sys.stdout.write("".join(f"--{name}\n" for name in shown_options(suite)))


def _print_paths(paths: list[Path]) -> None:
    sys.stdout.write("".join(f"{path}\n" for path in paths if path.suffix in (".md", ".png")))


@app.command()
def bench(
    record: Annotated[Path, typer.Option(help="Record of `python -m suites bench`.")] = Path("results/runs/bench.json"),
    out: Annotated[Path, typer.Option(help="Folder for the report: OUT/bench/.")] = Path("reports/build"),
) -> None:
    """Write the tables (targets, every ratio, seconds and bytes) and the figure of the bench."""
    with one_line_errors():
        _print_paths(BENCH.write(record, out))


@app.command()
def capabilities(
    record: Annotated[Path, typer.Option(help="Record of `python -m suites capabilities`.")] = Path(
        "results/reference/capabilities.json"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the report: OUT/capabilities/.")] = Path("reports/build"),
) -> None:
    """Write the capability matrix with the reason of every answer."""
    with one_line_errors():
        _print_paths(CAPABILITIES.write(record, out))


@app.command("gate-trial")
def gate_trial(
    record: Annotated[Path, typer.Option(help="Record of `python -m nox -s gate_trial`.")] = Path(
        "results/reference/gate/trial.json"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the report: OUT/trial/.")] = Path("reports/build"),
) -> None:
    """Write the table of the gate's mutation trial."""
    with one_line_errors():
        _print_paths(TRIAL.write(record, out))


@app.command()
def paper(
    records: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Folder or file of records; may be given several times [results/reference]."),
    ] = None,
    foreign: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="Folder or file of peft method_comparison results.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the tables: OUT/paper/, and a folder a report.")] = Path(
        "reports/build"
    ),
    against: Against = None,
    where: Where = None,
    figures: Annotated[
        bool, typer.Option(help="Write all other reports too: GLUE, C4, memory, bench, capabilities, trial.")
    ] = True,
) -> None:
    """Write the papers' tables cell by cell, with verdicts, and one HTML page with everything.

    Published numbers stand beside runs of the profile paper only; micro and small have tables of their own. The same
    records give the same bytes. An empty store is no error: every cell then says that it was not run. Prints the paths
    of what to read, the page's last.

    Example, with your own runs: python -m reports paper --records results/reference --records results/runs
    """
    with one_line_errors():
        roots = existing(records or [Path("results/reference")])
        gathered = gather(roots).where(where or ())
        made = make_paper(gathered, published_cells(), read_foreign(foreign or ()))
        paths = (write_reports(made, roots, out, against) if figures else []) + write_paper(made, out)
    console = Console()
    console.print(to_screen(made.tables[0], console.width))
    sys.stdout.write("".join(f"note: {line}\n" for line in trouble_lines(made)[:20]))
    sys.stdout.write("".join(f"{path}\n" for path in paths if path.name in ("report.md", "paper.md", "index.html")))


@app.command()
def memory(
    records: Annotated[Path, typer.Option(metavar="PATH", help="Folder of the cells and claims.")] = Path(
        "results/reference/memory"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the report: OUT/memory/.")] = Path("reports/build"),
) -> None:
    """Write the tables of the memory lab: what fits, the ladder of savings, the verdicts on published claims."""
    with one_line_errors():
        _print_paths(build_memory_report(records, out))


@app.command("documents")
def fill_documents(
    root: Annotated[Path, typer.Option(help="Folder of README.md and docs/.")] = Path("."),
    snapshot: Annotated[Path, typer.Option(help="The committed snapshot.")] = Path("reports/snapshot"),
) -> None:
    """Put the snapshot's tables between the markers of README.md and docs/*.md; prints what has changed."""
    with one_line_errors():
        texts = {path: path.read_text() for path in documents(root)}
        changed = {path: made for path, text in texts.items() if (made := filled(text, snapshot)) != text}
    for path, text in changed.items():
        path.write_text(text)
        sys.stdout.write(f"{path}\n")


register_gate(app)


if __name__ == "__main__":
    sys.excepthook = interrupted_early
    run(app, "reports")
