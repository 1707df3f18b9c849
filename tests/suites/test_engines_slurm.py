"""Real runs as jobs of a real SLURM on the loopback device: equal to the launcher's, whatever happens to their jobs."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from tests.suites import loopback_slurm
from tests.suites.fake_engine import facts

pytest.importorskip("submitit")
found = loopback_slurm.programs()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(found is None, reason=f"no SLURM and munge on PATH, nor under {loopback_slurm.ROOT}"),
]
STEPS = 400
SETTINGS = {"mem": "1500M", "time": "10"}
NEVER = 10**9


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SLURM of this module's, and the environment that leads to it."""
    assert found is not None
    with (
        loopback_slurm.running(found, tmp_path_factory.mktemp("slurm")) as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        # The store is a local folder: what is not there at once will not come.
        patch.setattr(rules, "SETTLE_S", 5.0)
        yield environment


@pytest.fixture(scope="module")
def plans(make_plan: Any) -> list[Plan]:
    return [make_plan(method="gradnormlorp", steps=STEPS), make_plan(method="lora", steps=40)]


@pytest.fixture(scope="module")
def here(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Plan], Record]:
    """A run by this machine's launcher, made once."""

    @functools.cache
    def run(key: str) -> Record:
        store, plan = tmp_path_factory.mktemp("here"), Plan.model_validate_json(key)
        (record,) = launch([plan], replace(runtime, threads=1, workers=1), store, {}, lambda event: None)
        assert record.final_digest is not None
        return record

    return lambda plan: run(plan.model_dump_json())


def supervisor(handle: str) -> psutil.Process:
    """Return the process that holds a job's run."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, IndexError):
            if process.cmdline()[1:4] == ["-u", "-m", "submitit.core._submit"]:
                if process.environ().get("SLURM_JOB_ID") == handle:
                    return process
    raise LookupError(handle)


Strike = Callable[[str], None]


class Struck:
    """Follows runs on SLURM, and strikes the job of the first plan once, in the middle of its run."""

    def __init__(self, plans: list[Plan], runtime: Runtime, store: Path, strike: Strike) -> None:
        from suites.engines.away import on_slurm

        self.handed: dict[str, list[str]] = {plan.hash(): [] for plan in plans}
        self.lines: list[str] = []
        self.at: list[int] = []

        def tell(event: Event) -> None:
            if event.plan == plans[0] and event.step > 40 and not self.at:
                self.at.append(event.step)
                strike(self.handed[plans[0].hash()][0])

        with on_slurm(runtime, store, SETTINGS, 2, self.lines.append) as away:
            engine: Any = away.engine
            engine.pause_s = 1.0
            submit = engine.submit

            def noted(task: Any) -> str:
                handle: str = submit(task)
                self.handed[task.plan.hash()].append(handle)
                return handle

            engine.submit = noted
            self.records = {record.plan_hash: record for record in away(plans, runtime, store, {}, tell)}


def test_runs_on_slurm_are_those_of_the_launcher_and_a_dead_supervisor_is_noticed(
    plans: list[Plan], here: Callable[[Plan], Record], slurm: dict[str, str], runtime: Runtime, tmp_path: Path
) -> None:
    asked = replace(runtime, threads=1, workers=1, checkpoint_steps=20)
    struck = Struck(plans, asked, tmp_path, lambda handle: supervisor(handle).kill())
    assert len(struck.at) == 1
    assert len([line for line in struck.lines if "tried again, 1 more" in line]) == 1, struck.lines
    assert [len(struck.handed[plan.hash()]) for plan in plans] == [2, 1]
    for plan in plans:
        assert facts(here(plan)) == facts(struck.records[plan.hash()])
    assert struck.records[plans[0].hash()].resumed_at[0] >= 20


def test_a_preempted_job_is_queued_again_and_goes_on_from_what_it_saved(
    plans: list[Plan], here: Callable[[Plan], Record], slurm: dict[str, str], runtime: Runtime, tmp_path: Path
) -> None:
    """No checkpoint is due by itself: what the run goes on from was saved on notice."""

    def preempt(handle: str) -> None:
        job = ["sbatch", "-p", "high", "-c", "2", "--mem=1500M", "-o", str(tmp_path / "high.out"), "--wrap", "sleep 2"]
        subprocess.run(job, check=True, capture_output=True, timeout=60)

    asked = replace(runtime, threads=1, workers=1, checkpoint_steps=NEVER)
    struck = Struck(plans[:1], asked, tmp_path, preempt)
    assert len(struck.at) == 1
    (record,) = struck.records.values()
    assert facts(record) == facts(here(record.plan))
    # The same job, not another one: no try was used up.
    assert len(struck.handed[plans[0].hash()]) == 1
    assert not [line for line in struck.lines if "tried again," in line]
    assert len(record.resumed_at) == 1
    assert struck.at[0] <= record.resumed_at[0] < STEPS


def test_detached_jobs_are_taken_up_by_the_next_command(
    plans: list[Plan], here: Callable[[Plan], Record], slurm: dict[str, str], runtime: Runtime, tmp_path: Path
) -> None:
    from suites.engines.away import on_slurm
    from suites.engines.status import note_asked, slurm_poll, standings

    asked, lines = replace(runtime, threads=1, workers=1), []  # type: tuple[Runtime, list[str]]
    note_asked(plans[1:], tmp_path, 1)
    for _ in range(2):
        with on_slurm(asked, tmp_path, SETTINGS, 0, lines.append, detach=True) as away:
            assert away(plans[1:], asked, tmp_path, {}, lambda event: None) == []
    (standing,) = standings(tmp_path, {"slurm": slurm_poll(tmp_path)})[0]
    assert standing.state in ("queued", "running")
    with on_slurm(asked, tmp_path, SETTINGS, 0, lines.append) as away:
        engine: Any = away.engine
        engine.pause_s = 1.0
        (record,) = away(plans[1:], asked, tmp_path, {}, lambda event: None)
    assert len([line for line in lines if "goes on as " in line]) == 2
    assert len(list((tmp_path / ".jobs").glob("[0-9]*"))) == 1
    assert facts(record) == facts(here(record.plan))
