"""All faults one after the other: what is shown, kept and summed up of a mutation trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from baselines.registry import checked_name
from results.gate.comparable import load
from results.gate.tolerances import FILE, read_tolerances
from results.gate.trial import Trial, TrialRow
from results.single import read_single, write_single
from suites.environment import environment
from suites.gate.faults import FAULTS, NO_OPS, Fault
from suites.gate.runs import fingerprint, gate_plans
from suites.gate.trial import try_fault
from suites.gate.work import gate_runtime

WANTED = 23
SECONDS_A_RUN = 8.0


def run_trial(console: Console, names: Sequence[str], reference: Path, out: Path, fresh: bool) -> bool:
    """Try the faults that the record in `out` lacks; return whether too few were caught or a no-op fired.

    Raises:
        ValueError: an unknown fault, no reference, or a fault whose text the code no longer holds.
        KeyboardInterrupt: Ctrl-C; the faults tried so far are kept.
    """
    known = {fault.name: (fault, fault in NO_OPS) for fault in (*FAULTS, *NO_OPS)}
    for name in names:
        checked_name(name, known, "fault")
    records, tolerances = load(reference, "reference"), read_tolerances(reference / FILE)
    mark = fingerprint()
    commit = environment(torch.device("cpu"), 1, 1).commit
    rows = {} if fresh else _kept(out, mark)
    todo = [known[name] for name in names or known if name not in rows]
    console.print(f"{len(todo)} to try, {len(rows)} in {out} already; about {_minutes(todo)} min", markup=False)
    for number, (fault, no_op) in enumerate(todo, 1):
        row = try_fault(fault, no_op, gate_plans(gate_runtime(), fault.only), records, tolerances)
        rows[fault.name] = row
        ordered = [rows[name] for name in known if name in rows]
        write_single(out, Trial(commit=commit, fingerprint=mark, rows=ordered))
        console.print(f"[{number:>2}/{len(todo)}] {_line(row)}", markup=False)
    faults = [row for row in rows.values() if not row.no_op]
    caught, fired = sum(row.caught for row in faults), [row.name for row in rows.values() if row.no_op and row.fired]
    console.print(f"{caught} of {len(faults)} faults caught; no-ops that fired: {', '.join(fired) or 'none'}; {out}")
    return bool(fired) or (not names and caught < WANTED)


def _kept(out: Path, mark: str) -> dict[str, TrialRow]:
    """Return the rows of an earlier trial of the same tree."""
    if not out.exists():
        return {}
    earlier = read_single(out, Trial)
    return {row.name: row for row in earlier.rows} if earlier.fingerprint == mark else {}


def _minutes(todo: Sequence[tuple[Fault, bool]]) -> int:
    runs = sum(len(gate_plans(gate_runtime(), fault.only)) for fault, _ in todo)
    return round(runs * SECONDS_A_RUN / 60 + len(todo) / 4)


def _line(row: TrialRow) -> str:
    sign = ("FIRED" if row.fired else "quiet") if row.no_op else "caught" if row.caught else "MISSED"
    if row.first is None:
        return f"{sign:>6}  {row.name}  {row.error or ''}  {row.seconds:.0f} s"
    first = row.first
    return f"{sign:>6}  {row.name}  {first.cell}: {first.quantity} {first.before} -> {first.after}  {row.seconds:.0f} s"
