"""The mutation trial: put one fault into a copy of the tree, run a few of the gate's plans, ask the gate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from baselines.registry import checked_name
from results.gate.comparable import Refusal, load
from results.gate.compare import Finding, compare
from results.gate.texts import pair_text
from results.gate.tolerances import FILE, Tolerances, read_tolerances
from results.gate.trial import Shown, Trial, TrialRow
from results.schema import Plan, Record
from results.single import read_single, write_single
from results.store import StoreError, read_records
from suites.gate.faults import FAULTS, NO_OPS, Fault
from suites.gate.runs import chosen, fingerprint, gate_plans, gate_runtime
from suites.measure.environment import ROOT, environment

TREE = ("gnlorp", "baselines", "suites", "results")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "runs", "reference", "published")
SHORT = 120
WANTED = 23
SECONDS_A_RUN = 5.0
SECONDS_A_FAULT = 20.0


def apply(fault: Fault, root: Path) -> None:
    """Make the fault's edits in the tree at `root`.

    Raises:
        ValueError: an edit's text does not stand in its file exactly once: the code has moved on, mend the fault.
    """
    for edit in fault.edits:
        path = root / edit.file
        text = path.read_text()
        if (count := text.count(edit.old)) != 1:
            raise ValueError(f"fault {fault.name}: its text stands {count} times in {edit.file}, must be once")
        path.write_text(text.replace(edit.old, edit.new))


def try_fault(
    fault: Fault, no_op: bool, plans: Sequence[Plan], reference: Sequence[Record], tolerances: Tolerances
) -> TrialRow:
    """Return what the gate says of a tree with `fault` in it.

    Args:
        plans: the gate's plans that are run with the fault, those of `fault.only`.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gate-trial-") as scratch:
        root = Path(scratch) / "tree"
        for name in TREE:
            shutil.copytree(ROOT / name, root / name, ignore=LEFT_OUT)
        apply(fault, root)
        records, error = _run(root, fault.only, Path(scratch) / "records")
    hashes = {plan.hash() for plan in plans}
    wanted = [record for record in reference if record.plan_hash in hashes]
    findings: list[Finding] = []
    if error is None:
        try:
            findings = compare(wanted, records, tolerances).findings
        except Refusal as problem:
            error = f"refused: {problem}"
    here, elsewhere = _cells(findings, fault, True), _cells(findings, fault, False)
    first = findings[0] if findings else None
    return TrialRow(
        name=fault.name,
        what=fault.what,
        files=[edit.file for edit in fault.edits],
        no_op=no_op,
        runs=[plan.label for plan in plans],
        caught=error is not None or (first is not None and _within(first.cell, fault)),
        fired=error is not None or first is not None,
        first=None if first is None else _shown(first),
        findings=len(findings),
        right_cells=here,
        wrong_cells=elsewhere,
        expected=fault.expected,
        seconds=round(time.monotonic() - start, 1),
        error=error,
    )


def _run(root: Path, only: Sequence[str], out: Path) -> tuple[list[Record], str | None]:
    command = [sys.executable, "-m", "suites", "gate", "run", "--out", str(out)]
    command += [word for part in only for word in ("--only", part)]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    try:
        records = read_records([out]) if out.exists() else []
    except StoreError as problem:
        return [], str(problem)
    if not records:
        last = next((line for line in reversed((done.stderr + done.stdout).splitlines()) if line.strip()), "")
        return [], f"exit code {done.returncode}: {last[:SHORT]}"
    return records, None


def _cells(findings: Sequence[Finding], fault: Fault, inside: bool) -> list[str]:
    return sorted({finding.cell for finding in findings if _within(finding.cell, fault) == inside})


def _within(cell: str, fault: Fault) -> bool:
    return any(part in cell for part in fault.cells)


def _shown(finding: Finding) -> Shown:
    before, after = pair_text(finding.before, finding.after)
    return Shown(
        sort=finding.sort, cell=finding.cell, quantity=finding.quantity, kind=finding.kind, before=before, after=after,
        cause=finding.cause,
    )  # fmt: skip


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
    plans = gate_plans(gate_runtime())
    minutes = _minutes([len(chosen(plans, fault.only)) for fault, _ in todo])
    console.print(f"{len(todo)} to try, {len(rows)} in {out} already; about {minutes} min", markup=False)
    for number, (fault, no_op) in enumerate(todo, 1):
        row = try_fault(fault, no_op, chosen(plans, fault.only), records, tolerances)
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


def _minutes(runs: Sequence[int]) -> int:
    return round((sum(runs) * SECONDS_A_RUN + len(runs) * SECONDS_A_FAULT) / 60)


def _line(row: TrialRow) -> str:
    sign = ("FIRED" if row.fired else "quiet") if row.no_op else "caught" if row.caught else "MISSED"
    if row.first is None:
        return f"{sign:>6}  {row.name}  {row.error or ''}  {row.seconds:.0f} s"
    first = row.first
    return f"{sign:>6}  {row.name}  {first.cell}: {first.quantity} {first.before} -> {first.after}  {row.seconds:.0f} s"
