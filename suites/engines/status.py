"""`python -m suites status OUT`: what has become of the runs that commands were asked for, without running anything."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from results.schema import Plan, Record
    from suites.engines.engine import State

FOLDER = ".asked"
DONE = ("ok", "diverged", "out_of_memory")
ORDER = (*DONE, "running", "queued", "unknown", "waiting", "interrupted", "gone", "failed")
Poll = Callable[[str], "State | None"]


@dataclass(frozen=True)
class Standing:
    """Where a run stands: one of `ORDER`, the last step that is known, and a word more."""

    plan: Plan
    state: str
    step: int | None = None
    why: str = ""


def note_asked(plans: Sequence[Plan], store: Path, slots: int) -> None:
    """Write that these runs are wanted, so many at a time.

    Raises:
        StoreError: the store cannot be written.
    """
    from results.store import write_atomically

    for plan in plans:
        said = {"slots": slots, "plan": plan.model_dump(mode="json")}
        # No ending: readers of the store take every .json for a record.
        write_atomically(store / FOLDER / plan.hash(), json.dumps(said).encode())


def refuse_handed(plans: Sequence[Plan], store: Path) -> None:
    """Raise ValueError where an engine has a run in hand that is to be run here, or begun anew: it would run twice."""
    from suites.engines import journal

    for plan in plans:
        found = journal.entry(store, plan)
        if found is not None:
            raise ValueError(
                f"{plan.label}: was handed to {found.engine} ({found.handle}): go on with --on {found.engine} and "
                f"without --fresh, or end it there and remove {store / journal.FOLDER}"
            )


def standings(store: Path, engines: Mapping[str, Poll]) -> tuple[list[Standing], int]:
    """Return where every run stands that was asked for in `store` or is recorded there, and how many go at a time.

    Args:
        engines: name -> (handle -> state; None: the engine does not answer).

    Raises:
        ValueError: nothing was asked for or recorded there, or what was cannot be read.
    """
    from results.schema import Plan
    from results.store import read_records

    records = {record.plan_hash: record for record in read_records([store])} if store.exists() else {}
    plans, slots = {key: record.plan for key, record in records.items()}, 1
    for path in sorted((store / FOLDER).glob("*")):
        try:
            said = json.loads(path.read_text())
            plans[path.name], slots = Plan.model_validate(said["plan"]), max(slots, int(said["slots"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: says nothing of a run that was asked for: remove it") from error
    if not plans:
        raise ValueError(f"{store}: no run was asked for or recorded there (the folder that --out names)")
    found = [standing(store, plan, records.get(key), engines) for key, plan in plans.items()]
    return sorted(found, key=lambda each: (ORDER.index(each.state), each.plan.label)), slots


def standing(store: Path, plan: Plan, record: Record | None, engines: Mapping[str, Poll]) -> Standing:
    """Return where one run stands: the store is believed before any engine."""
    from suites.engines import journal
    from suites.engines.engine import Gone, Running
    from suites.run import checkpoint

    if record is not None and record.status in DONE:
        return Standing(plan, record.status, plan.training.steps, _first_line(record.error))
    saved = checkpoint.newest_step(store, plan)
    entry = journal.entry(store, plan)
    if entry is not None:
        state = engines[entry.engine](entry.handle) if entry.engine in engines else None
        where = f"{entry.engine} {entry.handle}"
        if state is None:
            return Standing(plan, "unknown", saved, f"{where}, which does not answer here")
        if isinstance(state, Gone):
            return Standing(plan, "gone", saved, f"{state.why}; the same command goes on")
        if isinstance(state, Running):
            there = where if state.device is None else f"{where} on {state.device}"
            return Standing(plan, "running", saved if state.step is None else state.step, there)
        return Standing(plan, "queued", saved, where)
    if checkpoint.is_held(store, plan):
        return Standing(plan, "running", saved, "" if saved is None else "its newest checkpoint")
    if record is not None:
        return Standing(plan, record.status, saved, _first_line(record.error))
    return Standing(plan, "waiting", saved)


def seconds_left(found: Sequence[Standing], records: Sequence[Record], slots: int) -> float | None:
    """Return how long what is not done should take, so many at a time; None where no like run is known."""
    from suites.plan import expected_seconds

    total = 0.0
    for each in found:
        if each.state in DONE:
            continue
        whole = expected_seconds([each.plan], records, 1)
        if whole is None:
            return None
        total += whole * (1 - (each.step or 0) / each.plan.training.steps)
    return total / slots


def _first_line(text: str | None) -> str:
    return next(iter((text or "").splitlines()), "")


def slurm_poll(store: Path) -> Poll:
    """Return what SLURM says of a job of `store`'s; None where SLURM does not answer."""
    from suites.engines.on_slurm import SlurmEngine

    engine = SlurmEngine(store, {})
    return lambda handle: engine.poll(handle) if engine.answers() else None


def register(app: typer.Typer, console: Console, one_line_errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Add `status` to the command line of the suites."""

    @app.command()
    def status(
        out: Annotated[Path, typer.Argument(help="folder of the records, as --out has it")] = Path("results") / "runs",
    ) -> None:
        """Say which runs are done, running, queued, gone or failed, and how long the rest should take; run nothing."""
        with one_line_errors():
            from results.store import read_records
            from suites.console import duration_text
            from suites.plan import REFERENCE

            found, slots = standings(out, {"slurm": slurm_poll(out)})
            counts = Counter(each.state for each in found)
            said = ", ".join(f"{counts[state]} {state.replace('_', ' ')}" for state in ORDER if counts[state])
            console.print(f"{len(found)} runs in {out}: {said}", markup=False)
            for each in found:
                if each.state not in DONE:
                    console.print(line(each), markup=False)
            if any(each.state not in DONE for each in found):
                left = seconds_left(found, read_records([out]), slots)
                # Records of other runs in the same folder say nothing of these.
                left = seconds_left(found, read_records([REFERENCE]), slots) if left is None else left
                console.print(f"left: {duration_text(left)}, {slots} at a time", markup=False)


def line(each: Standing) -> str:
    """Return one line about a run that is not done."""
    plan = each.plan
    step = "" if each.step is None else f"  step {each.step:,} of {plan.training.steps:,}"
    why = f"  {each.why}" if each.why else ""
    return f"{each.state:>11}  {plan.task:<5} {plan.method:<13} seed {plan.seed}{step}{why}"
