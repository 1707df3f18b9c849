"""`suites tune`: the search from the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from results.schema import Plan, Record
from suites.engines.status import note_asked, refuse_handed
from suites.plan import Comparison, Request, comparison
from suites.search.choice import choice_table, write_choice
from suites.search.hunt import Hunt
from suites.search.journal import FILE
from suites.search.trials import trials_of
from suites.suite import Runtime

if TYPE_CHECKING:
    from suites.engines.away import Away

Show = Callable[[list[Plan], list[Plan], list[Record], Mapping[str, int | None]], None]
"Prints plans, missing ones, known records and predicted peaks before a round is run."


def searched(request: Request) -> Comparison:
    """Return a request with the layers of a search: what stands in `search`, and no earlier choice.

    Raises:
        ValueError: as `comparison` does.
    """
    asked = comparison(request, tuned=False)
    *profile, typed = asked.layers
    layers: list[Mapping[str, Any]] = [*profile, *(layer.get("search", {}) for layer in profile)]
    return replace(asked, layers=(*layers, typed, typed.get("search", {})))


def folder_of(request: Request, out: Path) -> Path:
    """Return where a search's records and journal stand."""
    return out / f"search-{request.suite}-{request.profile}-r{request.rank}"


def tune(
    console: Console,
    request: Request,
    runtime: Runtime,
    folder: Path,
    trials: int | None,
    fresh: bool,
    write: bool,
    show: Show,
    there: AbstractContextManager[Away | None] | None = None,
) -> int:
    """Search, here unless `there`, and write the choice; return how many runs did not end with a result.

    `there` is entered only where a run is missing.

    Raises:
        ValueError: bad input; a journal of another search; runs that an engine has in hand; no choice to write.
        KeyboardInterrupt: Ctrl-C; the same command goes on.
    """
    from results.store import check_writable
    from suites.run.preflight import check

    if runtime.group.size > 1:
        raise ValueError("a search is not run by a group of processes: give the command once a device, they share it")
    made = trials_of(searched(request), runtime, folder, trials)
    check([plan for of in (made.templates, made.longer) for table in of.values() for plan in table.values()], runtime)
    check_writable(made.folder)
    hunt = Hunt(made, runtime)
    with there if there is not None and hunt.undone() else nullcontext() as away:
        failed = _rounds(console, hunt, runtime, fresh, show, away)
    found = hunt.settle()
    console.print(choice_table(found))
    console.print(f"records, search.json and {FILE} in {made.folder}", markup=False)
    if failed:
        console.print(f"{failed} runs did not end with a result: no choice is written", markup=False)
    elif write:
        console.print(str(write_choice(found, made.folder)), markup=False)
    return failed


def _rounds(console: Console, hunt: Hunt, runtime: Runtime, fresh: bool, show: Show, away: Away | None) -> int:
    """Run what is missing, stage after stage, and return how many runs of the last one failed."""
    from results.store import read_records
    from suites.console import ProgressListener
    from suites.run import checkpoint
    from suites.run.preflight import predict_peaks

    made = hunt.trials
    while True:
        plans, todo = hunt.plans(), hunt.undone()
        if away is None or fresh:
            refuse_handed(todo, made.folder)
        note_asked(todo, made.folder, runtime.workers if away is None else away.slots)
        if fresh:
            for plan in todo:
                checkpoint.remove(checkpoint.folder_of(made.folder, plan))
        console.print(_stage(hunt), style="bold", markup=False)
        predicted = predict_peaks(todo, runtime)
        show(plans, todo, read_records([made.folder]), predicted)
        if going_on := checkpoint.unfinished(made.folder, todo):
            console.print(f"{going_on} of them go on from a checkpoint, or are in hand elsewhere", markup=False)
        with ProgressListener(console, todo) as listener:
            failed = hunt.go(predicted, listener, away)
        if failed or not hunt.goes_on():
            return failed


def _stage(hunt: Hunt) -> str:
    made = hunt.trials
    if hunt.confirming:
        return f"every method's best trial at the runs' own length, the next where it falls, at most {made.confirm}"
    return f"round {hunt.round + 1}: {made.trials} trials of every method"
