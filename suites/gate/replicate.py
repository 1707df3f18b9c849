"""Replicates: the gate's runs again under circumstances in which a second machine of the same stack differs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from suites.environment import ROOT, usable_cpus

PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
"""The oldest instruction sets that torch's own kernels, MKL and oneDNN can be held to."""


@dataclass(frozen=True)
class Circumstances:
    """How a replicate differs from an ordinary pass: runs at a time (the cores are shared out), and variables."""

    name: str
    workers: int
    variables: dict[str, str] = field(default_factory=dict)


def circumstances() -> list[Circumstances]:
    """Return the replicates that this machine can make; the reference has one thread a run and a run a core.

    Raises:
        ValueError: there is one core alone, so that no run can have two threads.
    """
    if usable_cpus() < 2:
        raise ValueError("replicates need at least 2 usable cores: one of them differs in the number of threads")
    return [
        Circumstances("threads", 1),
        Circumstances("portable", usable_cpus(), PORTABLE),
        Circumstances("portable-threads", 1, PORTABLE),
    ]


def run_replicate(each: Circumstances, out: Path) -> None:
    """Run the gate's plans under `each` into out/NAME, in a process of its own; a run with a record is not run again.

    Raises:
        ValueError: a run did not end well, or the process failed.
    """
    command = [
        sys.executable,
        "-m",
        "suites",
        "gate",
        "run",
        "--workers",
        str(each.workers),
        "--out",
        str(out / each.name),
    ]
    # Imported libraries read such variables once, when they start: only another process sees them.
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **each.variables}, check=False)
    if done.returncode:
        raise ValueError(f"replicate {each.name}: its runs ended with exit code {done.returncode}, see above")
