"""SIGTERM and SIGUSR2: a run saves its state and ends as lost; the next launch ends as an uninterrupted one does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results.schema import Plan, Record
from results.store import read_record, read_records
from suites.run import checkpoint, eviction
from suites.run.execute import execute
from suites.run.launch import Interrupted, launch
from suites.run.worker import Event, obituary, record_path
from suites.suite import Runtime
from tests.suites.test_launch import dead_worker

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
ROOT = Path(__file__).resolve().parents[2]
STEPS = 100
"""Long enough that the word to end comes well before the end, on a machine with other work too."""


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Nobody else's handlers, which another test of this process may have left: a launcher keeps out of their way."""
    before = {each: signal.signal(each, signal.SIG_DFL) for each in eviction.SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture(scope="module")
def plan(make_plan: Any) -> Plan:
    made: Plan = make_plan(method="gradnormlorp", steps=STEPS)
    return made


@pytest.fixture(scope="module")
def straight(plan: Plan, runtime: Runtime) -> Record:
    """The run as it is when nobody disturbs it, in this process."""
    record = execute(plan, runtime, None, lambda *_: None)
    assert record.status == "ok"
    return record


def goes_on(plan: Plan, runtime: Runtime, store: Path, straight: Record) -> None:
    """Assert that the next launch goes on from the one checkpoint, saved on notice, and ends as the straight run."""
    assert runtime.checkpoint_steps is None
    (saved,) = checkpoint.folder_of(store, plan).glob("step-*.pt")
    (again,) = launch([plan], runtime, store, {}, lambda event: None)
    assert again.status == "ok"
    assert again.resumed_at == [int(saved.stem.split("-")[1])]
    assert 0 < again.resumed_at[0] < STEPS
    assert again.final_digest is not None
    assert again.final_digest == straight.final_digest
    assert (again.curve, again.evaluations) == (straight.curve, straight.evaluations)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)])
def test_a_run_that_is_told_to_end_saves_and_counts_as_lost(
    number: signal.Signals, plan: Plan, runtime: Runtime, straight: Record, tmp_path: Path
) -> None:
    told: list[int] = []

    def tell(event: Event) -> None:
        if event.step > 0 and not told:
            (process,) = multiprocessing.active_children()
            assert process.pid is not None
            told.append(event.step)
            os.kill(process.pid, number)

    (record,) = launch([plan], runtime, tmp_path, {}, tell)
    assert record.status == "interrupted"
    assert (record.error or "").startswith(f"asked to end by {number.name}, after step ")
    goes_on(plan, runtime, tmp_path, straight)


@pytest.mark.slow
def test_a_launcher_that_is_told_to_end_has_its_runs_save(
    plan: Plan, runtime: Runtime, straight: Record, tmp_path: Path
) -> None:
    before = [signal.getsignal(each) for each in eviction.SIGNALS]

    def tell(event: Event) -> None:
        if event.step > 0:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="goes on where it stopped"):
        launch([plan], runtime, tmp_path, {}, tell)
    assert [signal.getsignal(each) for each in eviction.SIGNALS] == before
    assert read_record(record_path(tmp_path, plan)).status == "interrupted"
    goes_on(plan, runtime, tmp_path, straight)


@pytest.mark.slow
def test_a_run_whose_launcher_is_killed_saves_where_it_stands(
    plan: Plan, runtime: Runtime, straight: Record, tmp_path: Path
) -> None:
    """The launcher is a process of its own, killed without a word in the middle."""
    code = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from results.schema import Plan\n"
        "from suites.run.launch import launch\n"
        "from suites.suite import Runtime\n"
        "def strike(event):\n"
        "    if event.step > 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    plan = Plan.model_validate_json(sys.stdin.read())\n"
        "    launch([plan], Runtime(torch.device('cpu')), Path(sys.argv[1]), {}, strike)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, input=plan.model_dump_json(), text=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    until = time.monotonic() + 60
    while not read_records([tmp_path]):
        assert time.monotonic() < until
        time.sleep(0.1)
    record = read_record(record_path(tmp_path, plan))
    assert record.status == "interrupted"
    assert (record.error or "").startswith("its launcher is gone, after step ")
    goes_on(plan, runtime, tmp_path, straight)


def test_a_process_that_died_of_the_notice_was_lost_and_has_not_failed(plan: Plan, runtime: Runtime) -> None:
    for number in eviction.SIGNALS:
        record = obituary(dead_worker(plan, -number, 0), runtime, interrupted=False)
        assert record.status == "interrupted"
        assert (record.error or "") == f"asked to end by {number.name} before it had begun"
    assert not eviction.is_notice(-signal.SIGKILL)
    assert not eviction.is_notice(None)
