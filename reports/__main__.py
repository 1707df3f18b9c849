"""Command line: `python -m reports glue --records results/runs --profile micro --rank 8`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reports.averages.glue import ChoiceError, Convention
from reports.beside import write_beside
from reports.documents import documents, filled
from reports.gate.command import register as register_gate
from reports.paper.build import glue_reports, trouble_lines, write_paper
from reports.paper.build import paper as make_paper
from reports.records.gather import gather
from reports.records.peft_results import read_foreign
from reports.records.selection import ReportError
from reports.single import bench_report, contract_report, trial_report
from reports.tables.lab import build_memory_report
from reports.tables.render import to_screen
from reports.write import Report, c4_report, glue_report, write_report
from results.published import PublishedError, published_cells
from results.store import StoreError, read_records

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """Tables and figures from records alone. Reads JSON records, trains nothing, needs no torch.

    Start with: python -m reports glue --records results/runs
    """


@app.command()
def glue(
    records: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Folder or file of records; may be given several times [results/runs]."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Profile of the runs; may be left out where the records hold one only.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of the runs; full fine-tuning belongs to every rank.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for the report: OUT/glue-PROFILE-rRANK/.")] = Path("reports/build"),
    epoch: Annotated[str, typer.Option(help="Evaluation that counts: last, or best (optimistic).")] = "last",
    tasks: Annotated[int, typer.Option(help="Tasks in the average: 9, or 8 without WNLI.")] = 9,
    mnli: Annotated[str, typer.Option(help="matched, mismatched or mean.")] = "matched",
    mrpc: Annotated[str, typer.Option(help="f1, accuracy or mean.")] = "f1",
    qqp: Annotated[str, typer.Option(help="f1, accuracy or mean.")] = "accuracy",
    stsb: Annotated[str, typer.Option(help="pearson, spearman or mean.")] = "pearson",
    seeds: Annotated[
        str,
        typer.Option(help="same: an average needs equal seeds on all tasks; shared: over the seeds all tasks have."),
    ] = "same",
    against: Annotated[str | None, typer.Option(help="Method of the paired differences [full].")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE", help="Keep plans with FIELD=VALUE, such as training.state_bits=32; repeatable."
        ),
    ] = None,
) -> None:
    """Write the GLUE tables (Markdown, CSV, LaTeX) and figures (PNG, SVG) of one profile and rank.

    Scores are mean and standard deviation over seeds on the validation split, in percent. Memory is measured; estimates
    stand in a table of their own. The same records give the same bytes. Prints the paths last, report.md's at the end.

    Example, the mean of both MRPC metrics and the best epoch instead of F1 and the last one:

        python -m reports glue --profile paper --rank 8 --mrpc mean --epoch best
    """
    try:
        convention = Convention(epoch, tasks, mnli, mrpc, qqp, stsb, seeds)  # type: ignore[arg-type]
        loaded = read_records(_existing(records or [Path("results/runs")]))
        report = glue_report(loaded, profile, rank, convention, where or (), against)
        paths = write_report(report, out)
    except (ReportError, StoreError, ChoiceError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise typer.Exit(2) from None
    _show(report, paths)


@app.command()
def c4(
    records: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Folder or file of records; may be given several times [results/runs]."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Profile of the runs; may be left out where the records hold one only.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the runs; may be left out where the records hold one only.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report: OUT/c4-PROFILE-rRANK/.")] = Path("reports/build"),
    against: Annotated[str | None, typer.Option(help="Method of the paired differences [full].")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Keep plans with FIELD=VALUE, such as model.name=60m; repeatable."),
    ] = None,
) -> None:
    """Write the pre-training tables and figures of one profile and rank: perplexity, memory, speed, loss curves.

    Mean and standard deviation over seeds at the last evaluation; on the generated source also what is over its
    entropy. The same records give the same bytes. Prints the paths last, report.md's at the end.
    """
    try:
        loaded = read_records(_existing(records or [Path("results/runs")]))
        report = c4_report(loaded, profile, rank, where or (), against)
        paths = write_report(report, out)
    except (ReportError, StoreError, ChoiceError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise typer.Exit(2) from None
    _show(report, paths)


def _show(report: Report, paths: list[Path]) -> None:
    console = Console()
    for name in ("scores", "memory"):
        if (table := report.table(name)) is not None:
            console.print(to_screen(table, console.width))
    sys.stdout.write("each table also as .csv and .tex, each figure also as .svg; all of it as one page in report.md\n")
    sys.stdout.write("".join(f"{path}\n" for path in paths if path.suffix in (".md", ".png")))


def _single(make: Callable[[Path, Path], list[Path]], record: Path, out: Path) -> None:
    try:
        paths = make(record, out)
    except ValueError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise typer.Exit(2) from None
    sys.stdout.write("".join(f"{path}\n" for path in paths if path.suffix in (".md", ".png")))


@app.command()
def bench(
    record: Annotated[Path, typer.Option(help="Record of `python -m suites bench`.")] = Path("results/runs/bench.json"),
    out: Annotated[Path, typer.Option(help="Folder for the report: OUT/bench/.")] = Path("reports/build"),
) -> None:
    """Write the tables (targets, every ratio, seconds and bytes) and the figure of the bench."""
    _single(bench_report, record, out)


@app.command()
def contract(
    record: Annotated[Path, typer.Option(help="Record of `python -m suites contract`.")] = Path(
        "results/reference/contract.json"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the report: OUT/contract/.")] = Path("reports/build"),
) -> None:
    """Write the capability matrix with the reason of every answer."""
    _single(contract_report, record, out)


@app.command("gate-trial")
def gate_trial(
    record: Annotated[Path, typer.Option(help="Record of `python -m suites gate trial`.")] = Path(
        "results/reference/gate/trial.json"
    ),
    out: Annotated[Path, typer.Option(help="Folder for the report: OUT/trial/.")] = Path("reports/build"),
) -> None:
    """Write the table of the gate's mutation trial."""
    _single(trial_report, record, out)


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
    try:
        roots = _existing(records or [Path("results/reference")])
        gathered = gather(roots)
        made = make_paper(gathered, published_cells(), read_foreign(foreign or ()))
        beside = write_beside(made, roots, out) if figures else []
        paths = beside + write_paper(made, glue_reports(made) if figures else (), out)
    except (ReportError, StoreError, ChoiceError, PublishedError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise typer.Exit(2) from None
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
    try:
        paths = build_memory_report(records, out)
    except (ReportError, StoreError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise typer.Exit(2) from None
    sys.stdout.write("".join(f"{path}\n" for path in paths if path.suffix in (".md", ".png")))


@app.command("documents")
def fill_documents(
    root: Annotated[Path, typer.Option(help="Folder of README.md and docs/.")] = Path("."),
    snapshot: Annotated[Path, typer.Option(help="The committed snapshot.")] = Path("reports/snapshot"),
) -> None:
    """Put the snapshot's tables between the markers of README.md and docs/*.md; prints what has changed."""
    try:
        texts = {path: path.read_text() for path in documents(root)}
        changed = {path: made for path, text in texts.items() if (made := filled(text, snapshot)) != text}
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise typer.Exit(2) from None
    for path, text in changed.items():
        path.write_text(text)
        sys.stdout.write(f"{path}\n")


register_gate(app)


def _existing(paths: list[Path]) -> list[Path]:
    for path in paths:
        if not path.exists():
            raise ReportError(
                f"records folder {path} does not exist: run the suite first or name another with --records"
            )
    return paths


if __name__ == "__main__":
    app()
