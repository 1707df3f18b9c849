"""Runs in worker processes: what happens to one of them happens to that one alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from results.schema import Plan, Record
from results.store import StoreError, read_record, read_records
from suites import console
from suites.measure.environment import usable_cpus
from suites.plan import missing
from suites.run import worker as working
from suites.run.checkpoint import LOCKS
from suites.run.launch import Interrupted, launch
from suites.run.processes import shared_out
from suites.run.worker import Event, Launch
from suites.suite import Runtime

needs_signals = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")


def two_at_a_time(runtime: Runtime) -> Runtime:
    return Runtime(runtime.device, threads=1, workers=2)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if LOCKS not in path.parts)


def labels(plans: list[Plan]) -> list[str]:
    return sorted(f"{plan.label}.json" for plan in plans)


@needs_signals
def test_a_killed_worker_ends_alone_and_only_its_run_is_missing(
    make_plan: Any, runtime: Runtime, tmp_path: Path
) -> None:
    victim = make_plan(method="full", steps=80)
    plans = [victim, make_plan(method="lora"), make_plan(method="galore", seed=1)]
    killed: list[int] = []
    events: list[Event] = []

    def kill_the_victim(event: Event) -> None:
        events.append(event)
        if event.plan == victim and event.step > 0 and not killed:
            (process,) = [each for each in multiprocessing.active_children() if each.name == victim.label]
            assert process.pid is not None
            killed.append(event.step)
            os.kill(process.pid, signal.SIGKILL)

    predicted = {plan.hash(): 1000 + index for index, plan in enumerate(plans)}
    records = launch(plans, two_at_a_time(runtime), tmp_path, predicted, kill_the_victim)
    assert 0 < killed[0] < 80
    by_hash = {record.plan_hash: record for record in records}
    assert by_hash.keys() == predicted.keys()
    dead = by_hash.pop(victim.hash())
    assert dead.status == "failed"
    assert "killed by SIGKILL" in (dead.error or "")
    assert (dead.plan, dead.memory, dead.curve) == (victim, None, [])
    for record in by_hash.values():
        assert record.status == "ok"
        assert record.memory is not None
        assert record.memory.predicted_peak_bytes == predicted[record.plan_hash]
        assert (record.environment.workers, record.environment.threads) == (2, 1)
    assert files(tmp_path) == labels(plans)
    assert {record.plan_hash: record for record in read_records([tmp_path])} == {
        record.plan_hash: record for record in records
    }
    assert [event.record for event in events if event.record is not None] == records

    left = missing(plans, read_records([tmp_path]))
    assert left == [victim]
    (again,) = launch(left, two_at_a_time(runtime), tmp_path, predicted, lambda event: None)
    assert again.status == "ok"
    assert missing(plans, read_records([tmp_path])) == []
    assert files(tmp_path) == labels(plans)


@needs_signals
def test_an_interruption_leaves_records_of_what_was_in_hand(make_plan: Any, runtime: Runtime, tmp_path: Path) -> None:
    # Far more steps than a worker can take between its first word and the signal.
    plans = [make_plan(method="full", steps=4000), make_plan(method="lora", steps=4000), make_plan(method="galore")]

    def stop(event: Event) -> None:
        if event.step > 0:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="recorded"):
        launch(plans, two_at_a_time(runtime), tmp_path, {}, stop)
    assert signal.getsignal(signal.SIGINT) is handler
    records = read_records([tmp_path])
    assert sorted(record.plan_hash for record in records) == sorted(plan.hash() for plan in plans[:2])
    assert {record.status for record in records} == {"interrupted"}
    assert missing(plans, records) == plans
    assert files(tmp_path) == labels(plans[:2])
    assert multiprocessing.active_children() == []


def test_a_store_that_cannot_be_written_stops_the_launch(make_plan: Any, runtime: Runtime, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.write_text("a file in the folder's place")
    with pytest.raises(StoreError, match=r"cannot be written.*--out"):
        launch([make_plan(), make_plan(seed=1, steps=80)], two_at_a_time(runtime), store, {}, lambda event: None)
    assert store.read_text() == "a file in the folder's place"
    assert files(tmp_path) == ["store"]
    assert multiprocessing.active_children() == []


def dead_worker(plan: Plan, code: int, kills: int | None) -> Any:
    return SimpleNamespace(
        plan=plan, process=SimpleNamespace(exitcode=code), oom_kills=kills, started_at="2025-01-01T00:00:00+00:00"
    )


@pytest.mark.parametrize(
    ("code", "before", "after", "status", "text"),
    [
        (-9, 4, 5, "out_of_memory", "the kernel says that memory ran out"),
        (-9, 4, 4, "failed", "not by the kernel"),
        (-9, None, None, "failed", "not known"),
        (-11, 4, 5, "failed", "killed by SIGSEGV"),
        (3, 4, 4, "failed", "exit code 3"),
    ],
)
def test_the_record_of_a_dead_process_claims_no_more_than_is_known(
    code: int,
    before: int | None,
    after: int | None,
    status: str,
    text: str,
    make_plan: Any,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(working, "oom_kills", lambda: after)
    record: Record = working.obituary(dead_worker(make_plan(), code, before), runtime, interrupted=False)
    assert record.status == status
    assert text in (record.error or "")


def test_a_record_from_before_the_launch_is_not_taken_for_the_new_one(
    make_plan: Any, runtime: Runtime, tmp_path: Path
) -> None:
    # Two deaths of the same run in the same second: only the file's identity tells the second record from the first.
    plan = make_plan()
    path = tmp_path / f"{plan.label}.json"

    def finish(code: int) -> Record:
        process = SimpleNamespace(exitcode=code, join=lambda *seconds: None, is_alive=lambda: False)
        pipe: Any = SimpleNamespace(close=lambda: None)
        worker = working.Worker(plan, process, pipe, working.stamp(path), None)  # type: ignore[arg-type]
        return working.finish(worker, Launch(runtime, tmp_path, {}, lambda event: None))

    assert "exit code 3" in (finish(3).error or "")
    assert "exit code 4" in (finish(4).error or "")
    assert "exit code 4" in (read_record(path).error or "")


@pytest.mark.parametrize("workers", [0, -1, usable_cpus() + 1])
def test_workers_outside_the_cores_are_refused(workers: int, runtime: Runtime) -> None:
    nearest = min(max(workers, 1), usable_cpus())
    with pytest.raises(ValueError, match=rf"workers {workers}: .*nearest allowed value: {nearest}\)"):
        shared_out(runtime, workers)


def test_cores_are_shared_out_among_workers(runtime: Runtime) -> None:
    every = shared_out(runtime, None)
    assert (every.workers, every.threads) == (usable_cpus(), 1)
    one = shared_out(runtime, 1)
    assert (one.workers, one.threads) == (1, usable_cpus())


@pytest.mark.parametrize(
    ("precision", "factor", "warns"), [("bf16-autocast", 90.0, True), ("bf16", 1.1, False), ("fp32", 90.0, False)]
)
def test_slow_bf16_is_said_before_the_run(
    precision: str, factor: float, warns: bool, make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "bf16_slowdown", lambda device: factor)
    text = console.precision_warning([make_plan(precision=precision)], runtime)
    assert (text is not None and "bf16 takes 90 times as long" in text) is warns
