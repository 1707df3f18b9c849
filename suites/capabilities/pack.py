"""The pack: every check over every method, as a record and as a table; or over one optimizer, as a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import torch
from rich.table import Table

from baselines.registry import get_method
from results.capabilities import Answered, Capabilities, CapabilityMatrix
from suites.capabilities.checks import Check, checks, run_check
from suites.capabilities.subject import MakeOptimizer, Subject, method_subject, optimizer_subject
from suites.measure.environment import environment

NETWORKS = ("bert", "llama-lm")
OTHER_RATES = (10.0, 0.1, 100.0, 0.01)


def row_of(
    subject: Subject,
    networks: Sequence[str] = NETWORKS,
    backend: str = "aot_eager",
    report: Callable[[str], None] = lambda check: None,
) -> Capabilities:
    """Return what every check finds about one subject; `report` is called before each check."""
    known, found = checks(backend), {}
    for name, check in known.items():
        report(name)
        found[name] = run_check(check, subject, networks)
    failed = [name for name, each in found.items() if each.answer == "no"]
    if failed and all(found[name].slow for name in failed):
        hint = _hint(subject, [known[name] for name in failed], networks)
        found |= {name: found[name]._replace(reason=found[name].reason + hint) for name in failed}
    cells = [Answered(check=name, answer=each.answer, reason=each.reason) for name, each in found.items()]
    return Capabilities(name=subject.name, title=subject.title, cells=cells)


def _hint(subject: Subject, failed: Sequence[Check], networks: Sequence[str]) -> str:
    """Return what to say where all that failed was learning: a rate at which it learns, if a few others have one."""
    for factor in OTHER_RATES:
        other = replace(subject, learning_rate=float(f"{subject.learning_rate * factor:.3g}"))
        if all(run_check(check, other, networks).answer == "yes" for check in failed):
            return f" at a rate of {subject.learning_rate:g}; learns with learning_rate={other.learning_rate:g}"
    return f" at a rate of {subject.learning_rate:g}; if that does not suit it, give another learning_rate"


def matrix(
    names: Sequence[str],
    backend: str,
    report: Callable[[str], None] = lambda what: None,
    learning_rate: float | None = None,
) -> CapabilityMatrix:
    """Return the capability matrix of the named methods.

    Raises:
        ValueError: an unknown method, or a learning rate that is not above 0.
    """
    started = _now()
    rows = []
    for name in names:
        subject = method_subject(get_method(name), learning_rate)

        def said(check: str, title: str = subject.title) -> None:
            report(f"{title}: {check}")

        rows.append(row_of(subject, NETWORKS, backend, said))
    cpu = torch.device("cpu")
    return CapabilityMatrix(
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
) -> Capabilities:
    """Put an optimizer through the checks that the methods go through.

    `make_optimizer(parameters, learning_rate)` is called anew for each check with every parameter of a tiny BERT or
    LLaMA, vectors among them; `eight_bit` likewise, where the optimizer has a form with 8-bit state. One that is a
    `baselines.method.UpdatesInBackward` must update inside backward by itself. Returns a row: `passed`, `cell(check)`,
    and all answers with their reasons when printed.

    Raises:
        TypeError: what makes the optimizer cannot be called.
        ValueError: a learning rate that is not above 0.
    """
    return row_of(optimizer_subject(make_optimizer, learning_rate, eight_bit, name), NETWORKS, backend)


def matrix_table(found: CapabilityMatrix) -> Table:
    """Return the matrix for the terminal."""
    table = Table(title="What each method can do", title_justify="left")
    table.add_column("method")
    for cell in found.rows[0].cells:
        table.add_column(cell.check)
    for row in found.rows:
        table.add_row(row.title, *(cell.answer for cell in row.cells))
    return table


def reasons(found: CapabilityMatrix) -> list[str]:
    """Return one line for every answer: method, check, answer, reason."""
    return [f"{row.title}, {cell.check}: {cell.answer}: {cell.reason}" for row in found.rows for cell in row.cells]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
