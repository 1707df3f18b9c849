"""Reports on records that are one file: the bench, the capability matrix, the gate's trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reports.figures.lines import Plot
from reports.gate.trial import trial_table
from reports.tables.bench import bench_plot, claims_table, measurements_table, targets_table
from reports.tables.capabilities import contract_table
from reports.tables.render import Table, to_csv, to_latex, to_markdown
from results.bench import Bench
from results.capabilities import Matrix
from results.gate.trial import Trial
from results.single import read_single
from results.store import write_atomically


def bench_report(record: Path, out: Path) -> list[Path]:
    """Write the bench's tables and figure into `out`/bench and return their paths, the documents' table first.

    Raises:
        StoreError: the record cannot be read, the folder not written.
        ValueError: the record is empty.
    """
    found = read_single(record, Bench)
    plot = bench_plot(found)
    tables = (targets_table(found), claims_table(found), measurements_table(found))
    return _write(tables, [] if plot is None else [plot], out / "bench")


def contract_report(record: Path, out: Path) -> list[Path]:
    """Write the capability matrix into `out`/contract and return its paths.

    Raises:
        StoreError: the record cannot be read, the folder not written.
        ValueError: the record is empty.
    """
    return _write((contract_table(read_single(record, Matrix)),), [], out / "contract")


def trial_report(record: Path, out: Path) -> list[Path]:
    """Write the table of the gate's trial into `out`/trial and return its paths.

    Raises:
        StoreError: the record cannot be read, the folder not written.
        ValueError: the record is empty.
    """
    return _write((trial_table(read_single(record, Trial)),), [], out / "trial")


def _write(tables: Sequence[Table], plots: Sequence[Plot], folder: Path) -> list[Path]:
    paths = []
    for table in tables:
        for ending, text in (("md", to_markdown(table)), ("csv", to_csv(table)), ("tex", to_latex(table))):
            paths.append(write_atomically(folder / f"{table.name}.{ending}", text.encode()))
    for plot in plots:
        for ending, content in (("png", plot.png), ("svg", plot.svg)):
            paths.append(write_atomically(folder / f"{plot.name}.{ending}", content))
    return paths
