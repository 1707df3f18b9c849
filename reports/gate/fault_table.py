"""The mutation trial as a table: every seeded fault, whether the gate saw it, and what showed it first."""

from __future__ import annotations

import pandas as pd

from reports.tables.table import Entry, Table
from results.gate.trial import Trial, TrialRow


def trial_table(trial: Trial) -> Table:
    """Return a row a fault, then the changes that change nothing.

    Raises:
        ValueError: the record holds no row.
    """
    if not trial.rows:
        raise ValueError("the trial's record is empty: run `python -m nox -s gate_trial` first")
    faults = [row for row in trial.rows if not row.no_op]
    no_ops = [row for row in trial.rows if row.no_op]
    caught = sum(row.caught for row in faults)
    fired = sum(row.fired for row in no_ops)
    return Table(
        name="trial",
        caption=(
            f"Seeded faults, one at a time: the gate caught {caught} of {len(faults)}; it fired on {fired} of "
            f"{len(no_ops)} changes that change nothing."
        ),
        heads=("Fault", "What is wrong", "Gate", "First shown by", "In", "Reference", "With the fault"),
        rows=tuple(_entries(row) for row in (*faults, *no_ops)),
        notes=(
            "A fault counts as caught where the most telling finding names a cell that the fault is in. Each was tried "
            "on a few of the gate's runs, so that the gate as a whole can only see more.",
            f"Code: {trial.commit or 'outside a checkout'}.",
        ),
        data=pd.DataFrame([_values(row) for row in (*faults, *no_ops)]),
    )


def _entries(row: TrialRow) -> tuple[Entry, ...]:
    first = row.first
    said = ("FIRED" if row.fired else "quiet") if row.no_op else "caught" if row.caught else "MISSED"
    if first is None:
        shown = (row.error or "—", "—", "—", "—")
    else:
        shown = (first.quantity, first.cell, _cut(first.before), _cut(first.after))
    texts = (row.name, row.what, said, *shown)
    return tuple(Entry(text, bold=text == "MISSED") for text in texts)


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _values(row: TrialRow) -> dict[str, object]:
    first = row.first.model_dump() if row.first is not None else {}
    kept = ("name", "what", "no_op", "caught", "fired", "findings", "expected", "seconds", "error")
    return {name: getattr(row, name) for name in kept} | {f"first_{name}": value for name, value in first.items()}
