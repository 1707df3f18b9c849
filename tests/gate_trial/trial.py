"""The mutation trial of the gate: one fault at a time in a copy of the tree, a few of the gate's runs, and its verdict.

A fault is a patch under `faults/KIND/NAME.patch` with four lines before it:

    What: what is wrong, in a sentence
    Expected: the first kind, in the order of `results.gate.quantities.KINDS`, that has a finding; or none
    Cells: parts of the cells in which it is wrong, with "; " between them; nothing for a change that changes nothing
    Runs: which of the gate's runs show it, as `python -m suites gate run --only` takes them

A run beyond the cells belongs to a method or a setting that the fault does not touch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
import typer
from rich.console import Console

from baselines.registry import checked_name
from results.gate.comparable import Refusal, load
from results.gate.compare import Finding, compare
from results.gate.texts import pair_text
from results.gate.tolerances import FILE, Tolerances, read_tolerances
from results.gate.trial import Shown, Trial, TrialRow
from results.schema import Plan, Record
from results.store import StoreError, read_records, read_single, write_single
from suites.gate.command import REFERENCE, RUNS
from suites.gate.runs import chosen, fingerprint, gate_plans, gate_runtime
from suites.measure.environment import ROOT, environment

FAULTS = Path(__file__).parent / "faults"
TREE = ("gnlorp", "baselines", "suites", "results")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "runs", "reference", "published")
SHORT = 120
WANTED = 23
SECONDS_A_RUN = 5.0
SECONDS_A_FAULT = 20.0
HEADER = ("What", "Expected", "Cells", "Runs")
Kind = Literal["bytes", "numbers", "both", "unseen", "nothing"]
"""What a fault changes; `unseen`: not seen by the gate, its limits; `nothing`: the gate must stay quiet."""


@dataclass(frozen=True)
class Fault:
    """One patch with its header, and the files that it changes."""

    path: Path
    kind: str
    what: str
    expected: str
    cells: tuple[str, ...]
    only: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name, that of the file."""
        return self.path.stem


def read_fault(path: Path) -> Fault:
    """Return the fault in `path`.

    Raises:
        ValueError: a line of the header is missing.
    """
    text = path.read_text()
    header = dict(re.findall(r"^(\w+): ?(.*)$", text.partition("\ndiff ")[0], re.MULTILINE))
    for name in HEADER:
        if name not in header:
            raise ValueError(f"{path}: has no line {name!r}; a fault begins with {', '.join(HEADER)}")
    cells, only = (tuple(filter(None, header[name].split("; "))) for name in ("Cells", "Runs"))
    files = tuple(re.findall(r"^\+\+\+ b/(.*)$", text, re.MULTILINE))
    return Fault(path, path.parent.name, header["What"], header["Expected"], cells, only, files)


def faults() -> dict[str, Fault]:
    """Return all faults by name, kind after kind."""
    return {path.stem: read_fault(path) for kind in get_args(Kind) for path in sorted((FAULTS / kind).glob("*.patch"))}


def apply(fault: Fault, root: Path) -> None:
    """Put the fault into the tree at `root`.

    Raises:
        ValueError: the patch does not fit: the code has moved on, mend the fault.
    """
    # Where a folder of temporary files lies in a checkout, git would pass over all of it without a word.
    bounds = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.resolve().parent)}
    command = ["git", "apply", "--whitespace=nowarn", str(fault.path)]
    done = subprocess.run(command, cwd=root, env=bounds, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"fault {fault.name}: its patch does not fit, mend it: {done.stderr.strip()}")


def try_fault(fault: Fault, plans: Sequence[Plan], reference: Sequence[Record], tolerances: Tolerances) -> TrialRow:
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
        files=list(fault.files),
        no_op=fault.kind == "nothing",
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


def run_trial(
    fault: Annotated[list[str] | None, typer.Option(help="name of a fault; repeatable; default: all")] = None,
    out: Annotated[Path, typer.Option(help="file for the record, written after every fault")] = RUNS / "trial.json",
    reference: Annotated[Path, typer.Option(help="folder of the reference")] = REFERENCE,
    fresh: Annotated[bool, typer.Option("--fresh", help="try again what the record holds already")] = False,
) -> None:
    """Put seeded faults into copies of the tree, one at a time, and say which of them the gate sees.

    Ends with 1 where too few are caught or a change that changes nothing fires.
    """
    known = faults()
    try:
        todo = [known[checked_name(name, known, "fault")] for name in fault or known]
        records, tolerances = load(reference, "reference"), read_tolerances(reference / FILE)
        mark = fingerprint()
        rows = {} if fresh else _kept(out, mark)
    except (ValueError, StoreError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise typer.Exit(2) from None
    todo = [each for each in todo if each.name not in rows]
    plans = gate_plans(gate_runtime())
    minutes = _minutes([len(chosen(plans, each.only)) for each in todo])
    commit = environment(torch.device("cpu"), 1, 1).commit
    console = Console()
    console.print(f"{len(todo)} to try, {len(rows)} in {out} already; about {minutes} min", markup=False)
    for number, each in enumerate(todo, 1):
        rows[each.name] = row = try_fault(each, chosen(plans, each.only), records, tolerances)
        ordered = [rows[name] for name in known if name in rows]
        write_single(out, Trial(commit=commit, fingerprint=mark, rows=ordered))
        console.print(f"[{number:>2}/{len(todo)}] {_line(row)}", markup=False)
    tried = [row for row in rows.values() if not row.no_op]
    caught, fired = sum(row.caught for row in tried), [row.name for row in rows.values() if row.no_op and row.fired]
    console.print(f"{caught} of {len(tried)} faults caught; no-ops that fired: {', '.join(fired) or 'none'}; {out}")
    raise typer.Exit(1 if fired or (not fault and caught < WANTED) else 0)


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


if __name__ == "__main__":
    typer.run(run_trial)
