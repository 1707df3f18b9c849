"""The other reports of a store: pre-training, and the records that are one file of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from reports.paper.build import Paper
from reports.single import bench_report, contract_report, trial_report
from reports.tables.lab import build_memory_report
from reports.tables.pretraining import Pretraining
from reports.write import c4_report, write_report

SINGLE: dict[str, Callable[[Path, Path], list[Path]]] = {
    "bench.json": bench_report,
    "contract.json": contract_report,
    "gate/trial.json": trial_report,
    "memory": build_memory_report,
}
"""Place below a folder of records -> what writes its report."""


def write_beside(made: Paper, roots: Iterable[Path], out: Path) -> list[Path]:
    """Write below `out` the report of every pre-training group, and of what else lies below `roots`; return the paths.

    Raises:
        ReportError, StoreError: as the reports themselves do.
    """
    paths = []
    for group in made.groups:
        if group.suite == Pretraining.suite and group.rank is not None and not group.trouble:
            whole = made.gathered.whole(group.records)
            paths += write_report(c4_report(whole, group.profile, group.rank), out)
    for root in roots:
        for place, write in SINGLE.items():
            if (root / place).exists():
                paths += write(root / place, out)
    return paths
