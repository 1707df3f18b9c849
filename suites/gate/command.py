"""The gate's commands: `python -m suites gate run`, `folder` and `replicate`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from suites.engines.command import sayer
from suites.engines.place import Place, opened, settled, takes_place

RUNS = Path("results") / "runs" / "gate"
REFERENCE = Path("results") / "reference" / "gate"
Only = Annotated[
    list[str] | None,
    typer.Option(help="part of a run's label or of a cell, such as `galore` or `glue/rte`; repeatable; default: all"),
]
OneLineErrors = Callable[[], AbstractContextManager[None]]
Workers = Annotated[int | None, typer.Option(help="runs at a time; default: one a core")]


def register(
    app: typer.Typer,
    console: Console,
    one_line_errors: OneLineErrors,
    start: Callable[..., int],
) -> None:
    """Add the gate's commands to the command line of the suites; `start` runs missing plans as every suite does."""
    gate = typer.Typer(
        no_args_is_help=True,
        help=(
            "Runs for the gate that fails when memory or accuracy regresses. `python -m nox -s regression` does all of "
            "it; the verdict comes from `python -m reports gate`."
        ),
    )
    app.add_typer(gate, name="gate")
    _register_runs(gate, console, one_line_errors, start)
    _register_replicates(gate, console, one_line_errors)


def _register_runs(
    gate: typer.Typer,
    console: Console,
    one_line_errors: OneLineErrors,
    start: Callable[..., int],
) -> None:
    @gate.command()
    @takes_place
    def run(
        place: Place,
        only: Only = None,
        out: Annotated[Path | None, typer.Option(help="folder of the records; default: that of `gate folder`")] = None,
        workers: Workers = None,
        fresh: Annotated[bool, typer.Option("--fresh", help="run again what has a record already")] = False,
    ) -> None:
        """Run the gate's plans that have no record yet: micro GLUE and C4, and short variants of them."""
        with one_line_errors():
            from results.store import record_paths
            from suites.gate.runs import fingerprint, gate_plans, gate_runtime

            where = settled(place)
            runtime = gate_runtime(workers)
            folder = out or RUNS / fingerprint()
            plans = gate_plans(runtime, only or ())
            if fresh and folder.exists():
                doomed = {f"{plan.label}.json" for plan in plans}
                for path in [path for path in record_paths([folder]) if path.name in doomed]:
                    path.unlink()
            bad = start(plans, runtime, folder, there=opened(where, runtime, folder, sayer(console)))
            console.print(str(folder), markup=False)
        raise typer.Exit(1 if bad else 0)

    @gate.command()
    def folder() -> None:
        """Print the folder of this tree's records: another one for each state of code, embedded data and stack."""
        with one_line_errors():
            from suites.gate.runs import fingerprint

            console.print(str(RUNS / fingerprint()), markup=False)


def _register_replicates(gate: typer.Typer, console: Console, one_line_errors: OneLineErrors) -> None:
    @gate.command()
    def replicate(
        out: Annotated[Path, typer.Option(help="folder of the replicates")] = RUNS / "replicates",
        name: Annotated[list[str] | None, typer.Option(help="one of the replicates; repeatable; default: all")] = None,
        only: Only = None,
    ) -> None:
        """Run the plans again with other threads and instruction sets, for `python -m reports gate-tolerances`."""
        with one_line_errors():
            from baselines.registry import checked_name
            from suites.gate.replicate import circumstances, run_replicate

            known = {each.name: each for each in circumstances()}
            for chosen in name or known:
                each = known[checked_name(chosen, known, "replicate")]
                console.print(f"replicate {each.name}", style="bold", markup=False)
                run_replicate(each, out, only or ())
