"""The capability matrix as a table: a row a method, a column a check."""

from __future__ import annotations

import pandas as pd

from reports.tables.table import Entry, Table
from results.capabilities import Answered, CapabilityMatrix
from results.catalogue import Catalogue, committed

SHORT = {"yes": "yes", "no": "NO", "refused": "refused", "not applicable": "n/a"}
UNRECORDED = Entry("not recorded yet")


def capabilities_table(found: CapabilityMatrix, catalogue: Catalogue | None = None) -> Table:
    """Return the matrix; the notes hold every reason, the data one line an answer.

    A method of the catalogue (the committed one, unless another is given) that the record lacks, and a check that a
    method has no answer for, read as not recorded yet.

    Raises:
        ValueError: the record holds no row.
    """
    if not found.rows:
        raise ValueError("the capabilities record holds no method")
    checks = list(dict.fromkeys(cell.check for row in found.rows for cell in row.cells))
    rows = [
        (Entry(row.title), *(_entry(row.cell(check)) if check in row.checks else UNRECORDED for check in checks))
        for row in found.rows
    ]
    known = {row.name for row in found.rows}
    rows += [
        (Entry(method.title), *(UNRECORDED for _ in checks))
        for method in (catalogue or committed()).methods
        if method.name not in known
    ]
    lines = [
        {"method": row.name, "check": cell.check, "answer": cell.answer, "reason": cell.reason}
        for row in found.rows
        for cell in row.cells
    ]
    caption = (
        f"What each method can do, each answer found by a check on tiny networks ({', '.join(found.networks)}); "
        f"n/a: there is nothing to ask for. torch {found.environment.packages.get('torch', 'unknown')}, peft "
        f"{found.environment.packages.get('peft', 'unknown')}, torch.compile with {found.compile_backend}."
    )
    return Table("capabilities", caption, ("Method", *checks), tuple(rows), _notes(found, checks), pd.DataFrame(lines))


def _entry(cell: Answered) -> Entry:
    return Entry(SHORT[cell.answer], cell.answer == "no")


def _notes(found: CapabilityMatrix, checks: list[str]) -> tuple[str, ...]:
    """Return for each check its reasons, each once with the methods that share it."""
    notes = []
    for check in checks:
        reasons: dict[str, list[str]] = {}
        for row in (row for row in found.rows if check in row.checks):
            cell = row.cell(check)
            reasons.setdefault(f"{SHORT[cell.answer]}, {cell.reason}", []).append(row.title)
        texts = [reason if len(reasons) == 1 else f"{', '.join(who)}: {reason}" for reason, who in reasons.items()]
        notes.append(f"{check}: {'; '.join(texts)}")
    return tuple(notes)
