"""What SLURM says, read from recorded text, and the engine over it with its commands made up: no SLURM, no submitit."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from results.store import write_record
from suites.engines import on_slurm, queue
from suites.engines.engine import Gone, Queued, Resources, Running, Task
from suites.engines.follow import Clock, follow
from tests.suites.fake_engine import Told, World, record_of, usual

# Recorded from SLURM 22.05, but for the lines with GPUs (its nodes had none) and the names of jobs.

SQUEUE = """5|RUNNING|None|gnlorp-0123456789ab-c0ffee
6|RUNNING|None|gnlorp-123456789abc-c0ffee
7|PENDING|Resources|gnlorp-23456789abcd-c0ffee
8|PENDING|PartitionConfig|wrap
9|PENDING|BeginTime|wrap
"""
SCONTROL = (
    "JobId=1 JobName=wrap UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901759 Nice=0 Account=(null) "
    "QOS=(null) JobState=FAILED Reason=BadConstraints Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 "
    "ExitCode=0:1 RunTime=00:00:00 TimeLimit=01:00:00 TimeMin=N/A SubmitTime=2026-11-28T07:35:27\n"
)
SINFO = "low*|up|1|2|(null)\nhigh|up|1|2|(null)\n"
WITH_GPUS = "cpu|up|4|64|(null)\ngpu*|up|2|32|gpu:a100:4(S:0-1)\ngpu*|up|1|8|gpu:2,shard:8\nold|down|9|8|gpu:8\n"


def test_the_queue_is_read_line_by_line() -> None:
    found = queue.jobs(SQUEUE)
    assert list(found) == ["5", "6", "7", "8", "9"]
    assert found["8"] == ("PENDING", "PartitionConfig", "wrap")
    assert found["6"].state == "RUNNING"
    assert queue.live(found, "gnlorp-23456789abcd-c0ffee") == "7"
    assert queue.live(found, "gnlorp-0123456789ab-000000") is None
    assert queue.live(queue.jobs("5|COMPLETING|None|gnlorp-x\n"), "gnlorp-x") is None
    assert queue.jobs("") == {}
    assert queue.facts(SCONTROL)["Reason"] == "BadConstraints"
    assert queue.why(SCONTROL) == "SLURM says FAILED, reason BadConstraints, exit code 0:1"
    assert "knows nothing" in queue.why("slurm_load_jobs error: Invalid job id specified")
    assert not queue.WAITING & queue.AT_WORK


def test_partitions_are_read_and_what_none_can_take_is_refused() -> None:
    known = queue.partitions(SINFO)
    assert queue.chosen(known, None).name == "low"
    assert queue.slots(queue.chosen(known, "high"), Resources(1)) == 2
    with pytest.raises(ValueError, match=r"partition 'low': no node has what a run asks for, 1 CPUs and a GPU"):
        queue.slots(known["low"], Resources(1, 1.0))
    with pytest.raises(ValueError, match=r"unknown partition 'hihg': known are low, high; nearest: high"):
        queue.chosen(known, "hihg")
    with pytest.raises(ValueError, match="give partition=, of high"):
        queue.chosen({"high": known["high"]}, None)
    gpus = queue.partitions(WITH_GPUS)
    assert list(gpus) == ["cpu", "gpu"]
    assert gpus["gpu"].nodes == ((2, 32, 4), (1, 8, 2))
    assert queue.slots(queue.chosen(gpus, None), Resources(4, 1.0)) == 10
    assert queue.slots(gpus["gpu"], Resources(16, 1.0)) == 4


def test_settings_of_slurm_are_read() -> None:
    assert queue.settings_of(None) == {}
    assert queue.settings_of("partition=gpu, time=2:00:00") == {"partition": "gpu", "time": "2:00:00"}
    assert [queue.minutes(text) for text in ("90", "2:00:00", "0:00:01", "1-12:00:00")] == [90, 120, 1, 2160]
    for wrong in ("partition", "=1", "partition=", "partition=a,partition=b"):
        with pytest.raises(ValueError, match="--slurm"):
            queue.settings_of(wrong)
    for wrong in ("0", "0:00:00", "-1", "2h"):
        with pytest.raises(ValueError, match="H:MM:SS"):
            queue.minutes(wrong)


@dataclass
class Cluster:
    """What SLURM's commands answer; None: they fail."""

    squeue: str | None = SQUEUE
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, command: Any) -> str | None:
        self.asked.append(tuple(command))
        return {"squeue": self.squeue, "sinfo": SINFO, "scontrol": SCONTROL}.get(command[0])


def say_at_the_end(folder: Path, handle: str, *said: Any) -> None:
    (folder / on_slurm.FOLDER / handle).mkdir(parents=True, exist_ok=True)
    (folder / on_slurm.FOLDER / handle / f"{handle}_0_result.pkl").write_bytes(pickle.dumps(said))


def test_a_job_is_what_queue_and_result_say(tmp_path: Path) -> None:
    cluster_ = Cluster()
    engine = on_slurm.SlurmEngine(tmp_path, {}, cluster_)
    assert engine.capacity(Resources(1)).slots == 2
    assert isinstance(engine.poll("7"), Queued)
    assert engine.poll("5") == Running()
    (tmp_path / on_slurm.FOLDER / "5").mkdir(parents=True)
    (tmp_path / on_slurm.FOLDER / "5" / on_slurm.STEP).write_text(json.dumps((40, 0.25, "H100")))
    assert engine.poll("5") == Running(40, 0.25, "H100")
    stuck = engine.poll("8")
    assert isinstance(stuck, Gone)
    assert (stuck.cause, "PartitionConfig" in stuck.why, cluster_.asked[-1]) == ("refused", True, ("scancel", "8"))
    dead = engine.poll("1")
    assert isinstance(dead, Gone)
    assert (dead.cause, "FAILED, reason BadConstraints" in dead.why) == ("ended", True)
    say_at_the_end(tmp_path, "6", "success", Gone("ok", "ended"))
    assert engine.poll("6") == Gone("ok", "ended")
    say_at_the_end(tmp_path, "6", "error", "Trace\nsuites.engines.node.Refusal: node b: its code is another\n")
    assert engine.poll("6") == Gone("node b: its code is another", "refused")
    say_at_the_end(tmp_path, "6", "error", "Trace\nsubmitit.core.utils.UncompletedJobError: timed out\n")
    gone = engine.poll("6")
    assert isinstance(gone, Gone)
    assert (gone.cause, "timed out" in gone.why) == ("lost", True)


def test_a_queue_that_does_not_answer_says_nothing(tmp_path: Path) -> None:
    cluster_ = Cluster(squeue=None)
    engine = on_slurm.SlurmEngine(tmp_path, {}, cluster_)
    engine.pause_s = 0.0
    assert isinstance(engine.poll("5"), Queued)
    cluster_.squeue = SQUEUE
    assert isinstance(engine.poll("5"), Running)
    cluster_.squeue = None
    assert isinstance(engine.poll("5"), Running)
    cluster_.squeue = ""
    assert isinstance(engine.poll("5"), Gone)


def test_a_job_that_was_handed_over_and_not_noted_is_found_by_its_name(tasks: list[Task]) -> None:
    """The command was killed between the two; a job of another store has another name."""
    cluster_ = Cluster(squeue="")
    engine = on_slurm.SlurmEngine(tasks[0].store, {}, cluster_)
    elsewhere = on_slurm.SlurmEngine(tasks[0].store / "other", {}, cluster_)
    handed: list[str] = []

    def submitted(task: Task, name: str) -> str:
        handed.append(name)
        cluster_.squeue = (cluster_.squeue or "") + f"{len(handed)}|PENDING|Priority|{name}\n"
        return str(len(handed))

    for each in (engine, elsewhere):
        each._submitted = submitted  # type: ignore[method-assign]
    assert [engine.submit(tasks[0]), engine.submit(tasks[0]), engine.submit(tasks[1])] == ["1", "1", "2"]
    assert elsewhere.submit(tasks[0]) == "3"
    assert len(set(handed)) == 3


def test_a_job_has_its_run_save_before_it_is_queued_again(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers: Any = SimpleNamespace(DelayedSubmission=lambda *given: given)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(helpers=helpers))
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)
    code = "import signal, sys, time; signal.signal(signal.SIGUSR2, lambda *given: (time.sleep(0.3), sys.exit(7)));"
    command = [sys.executable, "-c", f"{code} print(flush=True); time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        monkeypatch.setattr(multiprocessing, "active_children", lambda: [run])
        serve = on_slurm.Serve()
        assert serve.checkpoint("a", "b") == (serve, "a", "b")
        assert run.wait(timeout=1) == 7 or run.returncode == 0


def test_a_supervisor_that_dies_without_a_word_is_noticed_and_its_run_comes_back(
    tasks: list[Task], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules over the SLURM engine, with its commands made up: the first job vanishes from the queue."""
    cluster_ = Cluster(squeue="11|RUNNING|None|a\n")
    engine = on_slurm.SlurmEngine(tasks[0].store, {}, cluster_)
    engine.pause_s = 0.0
    handles = iter(("11", "12"))
    monkeypatch.setattr(engine, "submit", lambda task: next(handles))
    world = World(usual)

    def sleep(seconds: float) -> None:
        world.sleep(10.0)
        if world.now >= 30:
            cluster_.squeue = "12|RUNNING|None|a\n"
        if world.now >= 200:
            write_record(tasks[0].store, record_of(tasks[0].plan))
            say_at_the_end(tasks[0].store, "12", "success", Gone("ok", "ended"))

    ended = follow(tasks[:1], engine, told.events.append, 1, told.lines.append, Clock(lambda: world.now, sleep))
    assert [record.status for record in ended.records] == ["ok"]
    assert len([line for line in told.lines if "job 11: SLURM says FAILED" in line]) == 1
