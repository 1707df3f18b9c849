"""The command that runs a comparison: `python -m suites run`, here or on other machines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import typer
from rich.console import Console

from suites.engines.place import Place, opened, settled, takes_place
from suites.options import Options, takes_options


def register(
    app: typer.Typer,
    console: Console,
    one_line_errors: Callable[[], AbstractContextManager[None]],
    steps: Callable[[], tuple[Callable[..., Any], Callable[..., int]]],
) -> None:
    """Add `run` to the command line of the suites, as its first command; `steps`: how a run is prepared and started."""

    @app.command()
    @takes_options()
    @takes_place
    def run(options: Options, place: Place) -> None:
        """Run the missing runs of a comparison and write one record each."""
        with one_line_errors():
            where = settled(place)
            prepare, start = steps()
            prepared = prepare(options, away=where.away)
            there = opened(where, prepared.runtime, options.out, sayer(console))
            failed = start(prepared.plans, prepared.runtime, options.out, options.fresh, there)
        raise typer.Exit(1 if failed else 0)


def sayer(console: Console) -> Callable[[str], None]:
    """Return what prints a line that people should know and no record says."""

    def say(line: str) -> None:
        console.print(line, style="yellow", markup=False)

    return say
