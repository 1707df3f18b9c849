"""The command that runs a comparison: `python -m suites run`, here or on other machines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer
from rich.console import Console

from results.choice import check_choice
from suites.options import Options, takes_options

ENGINES = ("here", "ray")


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
        ] = ENGINES[0],
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
            int | None, typer.Option(help="`--on ray`: how often a run whose node is lost is tried again; default: 2")
        ] = None,
    ) -> None:
        """Run the missing runs of a comparison and write one record each."""
        with one_line_errors():
            prepare, start = steps()
            check_choice(on, ENGINES, "engine")
            if on == ENGINES[0]:
                _refuse_settings({"--address": address, "--gpus-per-run": gpus_per_run, "--retries": retries})
                prepared = prepare(options)
                failed = start(prepared.plans, prepared.runtime, options.out, options.fresh)
            else:
                prepared = prepare(options, away=True)
                from suites.engines.away import on_ray, refuse_group

                refuse_group(prepared.runtime)
                tries = _checked_retries(retries)
                with on_ray(prepared.runtime, address, gpus_per_run, tries, lambda line: _say(console, line)) as away:
                    failed = start(prepared.plans, prepared.runtime, options.out, options.fresh, away)
        raise typer.Exit(1 if failed else 0)


def _complete(incomplete: str) -> list[str]:
    return [name for name in ENGINES if name.startswith(incomplete)]


def _say(console: Console, line: str) -> None:
    console.print(line, style="yellow", markup=False)


def _checked_retries(retries: int | None) -> int:
    if retries is not None and retries < 0:
        raise ValueError(f"retries {retries}: must be at least 0 (nearest allowed value: 0)")
    return 2 if retries is None else retries


def _refuse_settings(given: dict[str, object]) -> None:
    """Raise ValueError for a setting of an engine that is not used: it would be passed over without a word."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} {value}: is for --on {', '.join(ENGINES[1:])}; here there is nothing to set")
