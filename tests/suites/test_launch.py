"""Runs in worker processes: what happens to one of them happens to that one alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from results.schema import Plan, Record, Status
from results.store import StoreError, read_record, read_records, write_record
from suites import console
from suites.measure.environment import usable_cpus
from suites.plan import Request, make_plans, missing
from suites.run import checkpoint, eviction
from suites.run import launch as launching
from suites.run import worker as working
from suites.run.checkpoint import LOCKS
from suites.run.forkserver import server
from suites.run.launch import GroupError, Interrupted, launch, launch_here
from suites.run.processes import shared_out
from suites.run.worker import Event, Launch
from suites.suite import Runtime
from tests.suites.fake_engine import record_of

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
    at: dict[str, int] = {}

    def stop(event: Event) -> None:
        at[event.plan.hash()] = event.step
        if len(at) == 2 and all(at.values()):
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="recorded"):
        launch(plans, two_at_a_time(runtime), tmp_path, {}, stop)
    assert signal.getsignal(signal.SIGINT) is handler
    records = read_records([tmp_path])
    assert sorted(record.plan_hash for record in records) == sorted(plan.hash() for plan in plans[:2])
    assert {record.status for record in records} == {"interrupted"}
    assert missing(plans, records) == plans
    assert labels(plans[:2]) == sorted(path.name for path in tmp_path.glob("*.json"))
    assert multiprocessing.active_children() == []
    # Where they stood was saved.
    assert all((checkpoint.newest_step(tmp_path, plan) or 0) >= at[plan.hash()] for plan in plans[:2])


@needs_signals
def test_a_second_ctrl_c_reaches_the_runs() -> None:
    """They are processes of their own: a signal to the launcher alone is passed on."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        worker: Any = SimpleNamespace(process=process)
        with launching._undisturbed([worker]):
            os.kill(os.getpid(), signal.SIGINT)
            assert process.wait(timeout=30) == -signal.SIGINT
            # One that is gone by then is none of its business.
            os.kill(os.getpid(), signal.SIGINT)


@needs_signals
def test_one_ctrl_c_asks_and_the_next_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "_why", None)
    before = signal.signal(signal.SIGINT, working._save_first)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert eviction.asked() == "interrupted by the user"
        # The launcher asks too.
        eviction.ask("asked to end by SIGTERM")
        assert eviction.asked() == "interrupted by the user"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_that_another_command_has_finished_meanwhile_is_not_run_again(
    make_plan: Any, runtime: Runtime, tmp_path: Path
) -> None:
    plans = [make_plan(), make_plan(seed=1)]
    done = record_of(plans[0], "diverged", "elsewhere")
    path = write_record(tmp_path, done)
    before = working.stamp(path)
    records = launch(plans, two_at_a_time(runtime), tmp_path, {}, lambda event: None)
    assert {record.plan_hash: record.status for record in records} == {
        plans[0].hash(): "diverged",
        plans[1].hash(): "ok",
    }
    assert done in records
    assert working.stamp(path) == before


def test_the_code_of_a_record_is_that_of_the_launch(
    make_plan: Any, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The worker's own look would find this checkout.
    monkeypatch.setattr(working, "code_version", lambda root: ("a" * 40, False))
    (record,) = launch([make_plan()], runtime, tmp_path, {}, lambda event: None)
    assert (record.status, record.environment.commit, record.environment.dirty) == ("ok", "a" * 40, False)


def late_modules(texts: list[str], pipe: Connection) -> None:
    """Run plans in a process of the fork server, and say which of our modules that loaded."""

    def ours() -> set[str]:
        return {name for name in sys.modules if name.partition(".")[0] in ("suites", "baselines", "gnlorp", "results")}

    before = ours()
    from suites.run.execute import execute

    torch.set_num_threads(1)
    records = [
        execute(Plan.model_validate_json(text), Runtime(torch.device("cpu")), None, lambda *given: None)
        for text in texts
    ]
    pipe.send((sorted(ours() - before), [record.status for record in records]))


def test_a_worker_loads_none_of_our_code_after_the_launch(make_plan: Any, runtime: Runtime) -> None:
    few = (("steps", 2), ("batch_size", 4), ("train_rows", 60), ("eval_tokens", 500), ("evaluations", 1))
    (text,) = make_plans(Request("c4", "micro", 4, ("c4",), ("galore",), (0,), few), runtime)
    context = server()
    ours, theirs = context.Pipe()
    plans = [make_plan(method="gradnormlorp"), text]
    process = context.Process(target=late_modules, args=([plan.model_dump_json() for plan in plans], theirs))
    process.start()
    assert ours.recv() == ([], ["ok", "ok"])
    process.join()


class Scripted:
    """Workers that end as a script says, by plan and try, without a process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends: dict[str, list[Status]]) -> None:
        self.ends, self.beside, self.store = ends, [], None  # type: dict[str, list[Status]], list[int], Any
        self.active: list[Any] = []
        for name in ("start", "ready", "drain"):
            monkeypatch.setattr(launching, name, getattr(self, name))
        monkeypatch.setattr(working, "end", lambda worker, grace_s=0.0: None)

    def start(self, context: object, plan: Plan, launch: Launch) -> Any:
        path = working.record_path(launch.store, plan)
        worker = working.Worker(plan, None, None, working.stamp(path), None)  # type: ignore[arg-type]
        self.store = launch.store
        self.active.append(worker)
        return worker

    def ready(self, active: list[Any]) -> list[Any]:
        self.beside.append(len(active))
        return active[:1]

    def drain(self, worker: Any, listen: object) -> bool:
        write_record(self.store, record_of(worker.plan, self.ends[worker.plan.hash()].pop(0)))
        return True


def test_memory_that_runs_out_beside_others_is_tried_again_alone(
    make_plan: Any, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [make_plan(seed=seed) for seed in range(3)]
    ends: list[list[Status]] = [["out_of_memory", "ok"], ["ok"], ["out_of_memory", "out_of_memory"]]
    script = Scripted(monkeypatch, {plan.hash(): list(each) for plan, each in zip(plans, ends, strict=True)})
    told: list[Event] = []
    records = launch(plans, two_at_a_time(runtime), tmp_path, {}, told.append)
    assert script.beside == [2, 2, 1, 1, 1]
    assert {record.plan.seed: record.status for record in records} == {0: "ok", 1: "ok", 2: "out_of_memory"}
    assert [event.record for event in told if event.record is not None] == records
    assert read_records([tmp_path]) == sorted(records, key=lambda record: record.plan.label)


def test_memory_that_runs_out_alone_is_final_at_once(
    make_plan: Any, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    script = Scripted(monkeypatch, {plan.hash(): ["out_of_memory"]})
    (record,) = launch([plan], two_at_a_time(runtime), tmp_path, {}, lambda event: None)
    assert (record.status, script.beside) == ("out_of_memory", [1])


@pytest.mark.parametrize(("status", "runs"), [("ok", 2), ("diverged", 2), ("out_of_memory", 1), ("failed", 1)])
def test_a_group_goes_on_after_a_run_that_ends_alike_everywhere(
    status: Status, runs: int, make_plan: Any, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, held = [make_plan(), make_plan(seed=1)], []  # type: list[Plan], list[bool]

    def execute(plan: Plan, *given: Any) -> Record:
        held.append(checkpoint.is_held(tmp_path, plan))
        return record_of(plan, status, "as asked")

    monkeypatch.setattr("suites.run.execute.execute", execute)
    ended = pytest.raises(GroupError, match=f"{status} on process 0: as asked") if runs == 1 else nullcontext()
    with ended:
        assert len(launch_here(plans, runtime, tmp_path, {}, lambda event: None)) == 2
    assert issubclass(GroupError, ValueError), "the command line ends in one line"
    assert held == [True] * runs
    assert not checkpoint.is_held(tmp_path, plans[0])
    assert len(read_records([tmp_path])) == runs


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
