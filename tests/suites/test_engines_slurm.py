"""Real runs as jobs of the SLURM that `sinfo` reaches: equal to the launcher's; a dead supervisor's run comes back."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from results.schema import Plan, Record
from suites.engines import follow as rules
from suites.run.launch import launch
from suites.run.worker import Event
from suites.suite import Runtime

pytest.importorskip("submitit")
there = (
    shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not there, reason="no SLURM answers here")]


def facts(record: Record) -> dict[str, Any]:
    """What two runs of a plan have in common on one machine: all but times, resident sets and where it went on."""
    assert record.memory is not None
    memory = record.memory.model_dump(exclude={"rss_peak_bytes", "rss_start_bytes"})
    kept = record.model_dump(include={"plan_hash", "status", "evaluations", "curve", "final_digest", "engagement"})
    return {**kept, "memory": memory, "threads": record.environment.threads}


def supervisor(handle: str) -> psutil.Process:
    """Return the process that holds a job's run."""
    for process in psutil.process_iter():
        try:
            if process.cmdline()[1:4] == ["-u", "-m", "submitit.core._submit"]:
                if process.environ().get("SLURM_JOB_ID") == handle:
                    return process
        except (psutil.Error, IndexError):
            continue
    raise LookupError(handle)


def test_runs_on_slurm_are_those_of_the_launcher_and_a_dead_supervisor_is_noticed(
    make_plan: Any, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from suites.engines.away import on_slurm

    # The store is a local folder: what is not there at once will not come.
    monkeypatch.setattr(rules, "SETTLE_S", 5.0)
    plans: list[Plan] = [make_plan(method="gradnormlorp", steps=1200), make_plan(method="lora", steps=200)]
    asked = replace(runtime, threads=1, workers=1, checkpoint_steps=20)
    lines: list[str] = []
    killed: list[int] = []

    def strike(event: Event) -> None:
        if event.plan == plans[0] and event.step > 60 and not killed:
            handles = [handle for handle, task in handed.items() if task == plans[0]]
            supervisor(handles[0]).kill()
            killed.append(event.step)

    with on_slurm(asked, tmp_path / "slurm", "mem=2000M,time=10", 2, lines.append) as away:
        engine: Any = away.engine
        engine.pause_s = 1.0
        submit, handed = engine.submit, {}
        monkeypatch.setattr(
            engine, "submit", lambda task: handed.setdefault(handle := submit(task), task.plan) and handle
        )
        records = away(plans, asked, tmp_path / "slurm", {}, strike)
    assert len(killed) == 1
    assert len([line for line in lines if "tried again, 1 more" in line]) == 1, lines
    there = {record.plan_hash: record for record in records}
    for record in launch(plans, asked, tmp_path / "here", {}, lambda event: None):
        assert facts(record) == facts(there[record.plan_hash])
        assert record.final_digest is not None
    assert (there[plans[0].hash()].resumed_at or 0) >= 40
