"""The command that runs a comparison: `python -m suites run`, here or on other machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from results.choice import check_choice
from suites.options import Options, takes_options

if TYPE_CHECKING:
    from suites.engines.away import Away
    from suites.suite import Runtime

HERE = "here"
ENGINES = {HERE: (), "ray": ("--address", "--gpus-per-run", "--retries")}
"""Names of the engines, and the settings that each takes."""
RETRIES = 2


def register(
    app: typer.Typer,
    console: Console,
    one_line_errors: Callable[[], AbstractContextManager[None]],
    steps: Callable[[], tuple[Callable[..., Any], Callable[..., int]]],
) -> None:
    """Add `run` to the command line of the suites, as its first command; `steps`: how a run is prepared and started."""

    @app.command()
    @takes_options()
    def run(
        options: Options,
        on: Annotated[
            str,
            typer.Option(
                "--on",
                help="`here`: processes of this machine; `ray`: tasks of Ray (docs/machines.md)",
                autocompletion=_complete,
            ),
        ] = HERE,
        address: Annotated[
            str | None,
            typer.Option(
                help="`--on ray`: `host:port` of its head, `auto`; default: RAY_ADDRESS, else one started here"
            ),
        ] = None,
        gpus_per_run: Annotated[
            float | None,
            typer.Option(help="`--on ray`: share of a GPU a run, 0.5 for two on each; default: a whole one"),
        ] = None,
        retries: Annotated[
            int | None, typer.Option(help="away: how often a run whose node is lost is tried again; default: 2")
        ] = None,
    ) -> None:
        """Run the missing runs of a comparison and write one record each."""
        with one_line_errors():
            check_choice(on, list(ENGINES), "engine")
            given = {"--address": address, "--gpus-per-run": gpus_per_run, "--retries": retries}
            _check_settings(on, given)
            prepare, start = steps()
            prepared = prepare(options, away=on != HERE)
            with _opened(on, prepared.runtime, given, console) as away:
                failed = start(prepared.plans, prepared.runtime, options.out, options.fresh, away)
        raise typer.Exit(1 if failed else 0)


def _opened(
    on: str, runtime: Runtime, given: Mapping[str, Any], console: Console
) -> AbstractContextManager[Away | None]:
    """Return what runs plans on an engine, inside its context; None for this machine's launcher."""
    if on == HERE:
        return nullcontext()
    from suites.engines import away

    def say(line: str) -> None:
        console.print(line, style="yellow", markup=False)

    away.refuse_group(runtime)
    retries = RETRIES if given["--retries"] is None else given["--retries"]
    return away.on_ray(runtime, given["--address"], given["--gpus-per-run"], retries, say)


def _complete(incomplete: str) -> list[str]:
    return [name for name in ENGINES if name.startswith(incomplete)]


def _check_settings(on: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a bad setting, or one that `on` does not take: it would be passed over without a word."""
    for name, value in given.items():
        if value is not None and name not in ENGINES[on]:
            takers = [engine for engine, taken in ENGINES.items() if name in taken]
            raise ValueError(f"{name} {value}: is for --on {' or '.join(takers)}, not for --on {on}")
    retries = given["--retries"]
    if retries is not None and retries < 0:
        raise ValueError(f"retries {retries}: must be at least 0 (nearest allowed value: 0)")
