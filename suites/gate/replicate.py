"""Replicates: the gate's runs again under circumstances in which a second machine of the same stack differs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from suites.measure.environment import ROOT, usable_cpus

KERNELS = {"ATEN_CPU_CAPABILITY": "default"}
"""torch's own kernels without vector instructions beyond the oldest."""
MKL = "MKL_CBWR"
"""Variable that holds MKL's matrix products to the order of sums of one instruction set."""


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
    cores = usable_cpus()
    return [
        Circumstances("threads", 1),
        Circumstances("portable", cores, {**KERNELS, MKL: "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}),
        Circumstances("torch-kernels", cores, KERNELS),
        Circumstances("mkl", cores, {MKL: "COMPATIBLE"}),
        Circumstances("mkl-sse4", cores, {MKL: "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}),
        Circumstances("mkl-avx", cores, {MKL: "AVX", **KERNELS}),
    ]


def run_replicate(each: Circumstances, out: Path, only: Sequence[str] = ()) -> None:
    """Run the gate's plans, or those that `only` names, under `each` into out/NAME, in a process of its own.

    A run with a record is not run again.

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
        *(part for name in only for part in ("--only", name)),
    ]
    # Imported libraries read such variables once, when they start: only another process sees them.
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **each.variables}, check=False)
    if done.returncode:
        raise ValueError(f"replicate {each.name}: its runs ended with exit code {done.returncode}, see above")
