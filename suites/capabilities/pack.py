"""The pack: every check over every method, as a record and as a table; or over one optimizer, as a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import torch
from rich.table import Table

from baselines.registry import get_method
from results.capabilities import Cell, Matrix, Row
from suites.capabilities.checks import checks, run_check
from suites.capabilities.subject import MakeOptimizer, Subject, method_subject, optimizer_subject
from suites.measure.environment import environment

NETWORKS = ("bert", "llama-lm")


def row_of(
    subject: Subject,
    networks: Sequence[str] = NETWORKS,
    backend: str = "aot_eager",
    report: Callable[[str], None] = lambda check: None,
) -> Row:
    """Return what every check finds about one subject; `report` is called before each check."""
    cells = []
    for name, check in checks(backend).items():
        report(name)
        found = run_check(check, subject, networks)
        cells.append(Cell(check=name, answer=found.answer, reason=found.reason))
    return Row(name=subject.name, title=subject.title, cells=cells)


def matrix(names: Sequence[str], backend: str, report: Callable[[str], None] = lambda what: None) -> Matrix:
    """Return the capability matrix of the named methods.

    Raises:
        ValueError: an unknown method.
    """
    started = _now()
    rows = []
    for name in names:
        subject = method_subject(get_method(name))

        def said(check: str, title: str = subject.title) -> None:
            report(f"{title}: {check}")

        rows.append(row_of(subject, NETWORKS, backend, said))
    cpu = torch.device("cpu")
    return Matrix(
        started_at=started,
        finished_at=_now(),
        environment=environment(cpu, torch.get_num_threads(), 1),
        networks=list(NETWORKS),
        compile_backend=backend,
        rows=rows,
    )


def check_optimizer(
    make_optimizer: MakeOptimizer,
    *,
    eight_bit: MakeOptimizer | None = None,
    learning_rate: float = 2e-3,
    name: str = "optimizer",
    backend: str = "aot_eager",
) -> Row:
    """Put an optimizer through the checks that the methods go through.

    `make_optimizer(parameters, learning_rate)` is called anew for each check with every parameter of a tiny BERT or
    LLaMA, vectors among them; `eight_bit` likewise, where the optimizer has a form with 8-bit state. One that is a
    `baselines.method.UpdatesInBackward` must update inside backward by itself. Returns a row: `passed`, `cell(check)`,
    and all answers with their reasons when printed.
    """
    return row_of(optimizer_subject(make_optimizer, learning_rate, eight_bit, name), NETWORKS, backend)


def matrix_table(found: Matrix) -> Table:
    """Return the matrix for the terminal."""
    table = Table(title="What each method can do", title_justify="left")
    table.add_column("method")
    for cell in found.rows[0].cells:
        table.add_column(cell.check)
    for row in found.rows:
        table.add_row(row.title, *(cell.answer for cell in row.cells))
    return table


def reasons(found: Matrix) -> list[str]:
    """Return one line for every answer: method, check, answer, reason."""
    return [f"{row.title}, {cell.check}: {cell.answer}: {cell.reason}" for row in found.rows for cell in row.cells]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
