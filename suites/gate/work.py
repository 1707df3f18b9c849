"""Run the gate's missing plans: shown, launched, one record each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from results.schema import Plan, Record
from results.store import read_records
from suites import console as view
from suites.launch import launch, shared_out
from suites.plan import expected_seconds, missing
from suites.preflight import check, predict_peaks
from suites.suite import Runtime


def gate_runtime(workers: int | None = None) -> Runtime:
    """Return the runtime of the gate: the processor, offline, a worker a core unless told.

    Raises:
        ValueError: `workers` outside its range.
    """
    return shared_out(Runtime(torch.device("cpu"), offline=True), workers)


def run_missing(plans: Sequence[Plan], runtime: Runtime, out: Path, alike: Sequence[Record], console: Console) -> int:
    """Run those of `plans` that have no record in `out`; return how many did not end well.

    Args:
        alike: records of earlier runs, from which the time is estimated.

    Raises:
        ValueError: data or settings do not fit; a record cannot be read or written.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    todo = missing(plans, read_records([out]) if out.exists() else [])
    check(todo, runtime)
    predicted = predict_peaks(todo, runtime)
    seconds = expected_seconds(todo, alike, runtime.workers)
    console.print(view.summary_line(plans, todo, runtime, seconds, out), markup=False)
    if not todo:
        return 0
    with view.ProgressListener(console, todo) as listener:
        records = launch(todo, runtime, out, predicted, listener)
    return sum(record.status != "ok" for record in records)
