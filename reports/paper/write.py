"""Everything that `python -m reports paper` writes: the papers' tables, our own, the GLUE reports, and the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reports.page.html import page_html
from reports.paper.comparison import PaperTable, elsewhere, paper_tables
from reports.paper.our_numbers import PaperRuns
from reports.paper.tables import (
    conflict_table,
    elsewhere_table,
    long_form,
    protocol_table,
    to_table,
    verdict_table,
)
from reports.records.frames import ROW
from reports.records.groups import Group, groups
from reports.records.peft_results import Foreign, foreign_table
from reports.records.reading import Gathered
from reports.tables.memory_lab import build_memory_report
from reports.tables.standing import standing_table, state_table
from reports.tables.table import FORMS, Table, latex_document, to_markdown
from reports.write import BENCH, CAPABILITIES, TRIAL, forms, report_of, write_files, write_report
from results.catalogue import committed
from results.published import Cell

FOLDER = "paper"
OF_GROUPS, OF_SOME_STORES = ("standing", "switchboard"), ("state-reduction", "foreign")
"""Tables that a store may have or not: one for each of its groups, whose name they end in, and one for all."""
SHOWN_FILES = 20
ONE_FILE: dict[str, Callable[[Path, Path], list[Path]]] = {
    "bench.json": BENCH.write, "capabilities.json": CAPABILITIES.write, "gate/trial.json": TRIAL.write,
    "memory": build_memory_report,
}  # fmt: skip
"""Place below a folder of records -> what writes its report."""


@dataclass(frozen=True)
class Paper:
    """All that the records and the published numbers allow, nothing written yet."""

    gathered: Gathered
    published: tuple[Cell, ...]
    papers: tuple[PaperTable, ...]
    groups: tuple[Group, ...]
    own: tuple[Table, ...]
    foreign: tuple[Foreign, ...] = ()

    @property
    def tables(self) -> list[Table]:
        """Every table in the order of reading."""
        quoted = [verdict_table(self.papers), *map(to_table, self.papers), conflict_table(self.published)]
        imported = foreign_table(self.foreign)
        rest = [protocol_table(), elsewhere_table(elsewhere(self.published)), *([imported] if imported else [])]
        return [*quoted, *self.own, *rest]


def paper(gathered: Gathered, published: Sequence[Cell], foreign: Sequence[Foreign] = ()) -> Paper:
    """Return the papers' tables and our own; an empty store is no error, its cells say that nothing was run."""
    found = groups(gathered.records, gathered.searches)
    own: list[Table | None] = []
    # At equal memory there is no front of score against memory, and state is that of the other runs.
    usual = [group for group in found if not group.variant]
    for group in usual:
        own.append(standing_table(group))
        context = group.context
        if context.plugin is not None:
            own += [replace(table, name=f"{table.name}-{group.name}") for table in context.plugin.tables(context)]
    own.append(state_table(usual))
    tables = tuple(table for table in own if table is not None)
    papers = tuple(paper_tables(published, PaperRuns(gathered)))
    return Paper(gathered, tuple(published), papers, tuple(found), tables, tuple(foreign))


def paper_files(made: Paper, link: str | None = None) -> dict[str, bytes]:
    """Return file name -> content of the folder of the papers' tables.

    Args:
        link: see `page.page_html`.
    """
    files = forms(made.tables)
    files["cells.csv"] = long_form(made.papers).to_csv(index=False, lineterminator="\n").encode()
    files["paper.tex"] = latex_document([table.name for table in made.tables], []).encode()
    files["paper.md"] = _document(made).encode()
    page = page_html(made.gathered, made.papers, made.published, made.groups, made.foreign, link)
    files["index.html"] = page.encode()
    return files


def _document(made: Paper) -> str:
    parts = ["# The papers' tables, cell by cell\n", *(to_markdown(table) for table in made.tables)]
    lines = trouble_lines(made)
    if lines:
        parts.append("\n".join(["## What was left out\n", *(f"- {line}" for line in lines), ""]))
    return "\n".join(parts)


def trouble_lines(made: Paper) -> list[str]:
    """Return one line for everything that was found and does not stand in the tables."""
    gathered = made.gathered
    lines = ["no records: every cell that needs one says so"] if not gathered.found else []
    for left_out, kept, alike in gathered.duplicates:
        ended = "both ended alike" if alike else "the two differ in how they ended"
        lines.append(f"{left_out}: same plan as {kept}, left out; {ended}")
    shown = list(gathered.others[:SHOWN_FILES])
    more = len(gathered.others) - len(shown)
    lines += [f"{path}: not a record of a run, left out" for path in shown]
    return [*lines, *([f"and {more} more files that are no records of runs"] if more > 0 else [])]


def write_reports(made: Paper, roots: Iterable[Path], out: Path, against: str | None = None) -> list[Path]:
    """Write below `out` the report of every group, and of what else lies below `roots`; return the paths.

    Args:
        against: row of the paired differences in the groups that have it; the others keep their yardstick.

    Raises:
        ReportError, StoreError: as the reports themselves do.
    """
    paths = []
    for group in made.groups:
        whole = made.gathered.whole(group.records)
        context = group.context_of(whole)
        named = against if against in {method.partition(ROW)[0] for method in context.methods} else None
        paths += write_report(report_of(context, against if against in context.methods else named), out)
    for root in roots:
        for place, write in ONE_FILE.items():
            if (root / place).exists():
                paths += write(root / place, out)
    return paths


def link_from(folder: Path) -> str | None:
    """Return the way from a folder back to the current one, None if it lies elsewhere: no machine's folders."""
    try:
        inside = folder.resolve().relative_to(Path.cwd())
    except ValueError:
        return None
    return "../" * len(inside.parts)


def write_paper(made: Paper, out: Path) -> list[Path]:
    """Write the papers' tables and the page below `out` and return the paths, the page last.

    Tables that an earlier run left in the folder and this one does not have are removed: they would show other records.
    What else is there stays.

    Raises:
        StoreError: a folder cannot be written.
    """
    folder = out / FOLDER
    files = paper_files(made, link_from(folder))
    paths = write_files(folder, files)
    suites = {*(suite.name for suite in committed().suites), *(group.suite for group in made.groups)}
    for path in sorted(folder.iterdir()):
        if path.name not in files and may_be_ours(path.name, suites):
            path.unlink()
    return paths


def may_be_ours(name: str, suites: Iterable[str]) -> bool:
    """Whether a file bears the name of a table that some stores have and others have not."""
    of_groups = f"(?:{'|'.join(OF_GROUPS)})-(?:{'|'.join(map(re.escape, suites))})-.+"
    endings = "|".join(map(re.escape, FORMS))
    return re.fullmatch(rf"(?:{of_groups}|{'|'.join(OF_SOME_STORES)})\.(?:{endings})", name) is not None
