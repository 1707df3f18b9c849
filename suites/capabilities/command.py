"""`python -m suites capabilities`: runs the pack over the registry, prints the matrix, writes the record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from baselines.registry import checked_name, get_method, methods
from results.store import check_writable, write_single
from suites.capabilities.checks import checks
from suites.capabilities.pack import matrix, matrix_table, reasons
from suites.capabilities.subject import checked_rate
from suites.outside import named_methods

BACKENDS = ("inductor", "aot_eager", "eager")


def print_matrix(
    console: Console, names: Sequence[str], backend: str, learning_rate: float | None, out: Path | None
) -> int:
    """Print the capability matrix of the named methods, or of all, and return how many checks failed.

    Raises:
        ValueError: an unknown method or backend, a learning rate that is not above 0, a file that cannot be written.
    """
    checked_name(backend, BACKENDS, "backend")
    chosen = [get_method(name).name for name in named_methods(names)[0]] or list(methods())
    if learning_rate is not None:
        checked_rate(learning_rate)
    if out is not None:
        check_writable(out.parent)
    console.print(f"{len(chosen)} methods, {len(checks())} checks; about 20 processor seconds a method")
    with console.status("starting") as status:
        found = matrix(chosen, backend, status.update, learning_rate)
    console.print(matrix_table(found))
    for line in reasons(found):
        console.print(line, markup=False)
    if out is not None:
        console.print(str(write_single(out, found)))
    return sum(cell.answer == "no" for row in found.rows for cell in row.cells)
