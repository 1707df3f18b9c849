"""What a person typed wrongly: one line on the error stream, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from reports.records.selection import ReportError

BAD_INPUT = 2


@contextmanager
def one_line_errors(code: int = BAD_INPUT) -> Iterator[None]:
    """Print what was wrong with a request in one line and end with exit code `code`."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise typer.Exit(code) from None


def existing(paths: list[Path]) -> list[Path]:
    """Return the paths.

    Raises:
        ReportError: one of them does not exist.
    """
    for path in paths:
        if not path.exists():
            raise ReportError(
                f"records folder {path} does not exist: run the suite first or name another with --records"
            )
    return paths
