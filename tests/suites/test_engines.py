"""The rules for runs on other machines, over an engine and a clock that are made up: no process, no second passes."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from results.schema import Plan, Record, Status
from results.store import StoreError, read_record, read_records, write_record
from suites.__main__ import app
from suites.engines import away, cluster, journal, node
from suites.engines import follow as rules
from suites.engines.engine import Gone, NotTaken, Resources, Running, State, Task
from suites.engines.follow import Clock, follow
from suites.measure.environment import code_digest
from suites.run import checkpoint, worker
from suites.run.launch import Interrupted
from suites.run.worker import Event, record_path
from suites.suite import Beside, Runtime
from tests.suites.fake_engine import Told, World, record_of, usual


def test_runs_are_handed_over_once_and_their_records_are_those_of_the_store(tasks: list[Task], told: Told) -> None:
    world = World(usual)
    ended = told.run(world, tasks)
    assert world.submitted == tasks
    assert ended.lost == {}
    assert sorted(record.plan_hash for record in ended.records) == sorted(task.plan.hash() for task in tasks)
    assert ended.records == [read_record(record_path(task.store, task.plan)) for task in reversed(tasks)]
    of_first = [event for event in told.events if event.plan == tasks[0].plan]
    assert [event.step for event in of_first] == [1, 2, 3, 0]
    assert [event.record is not None for event in of_first] == [False, False, False, True]
    assert [event.device for event in of_first] == ["H100", "H100", "H100", None]
    assert told.lines == []


def test_a_run_of_its_own_failure_is_a_record_and_leaves_the_rest_alone(tasks: list[Task], told: Told) -> None:
    def script(world: World, task: Task, second: int) -> State:
        if task.plan != tasks[1].plan:
            return usual(world, task, second)
        write_record(task.store, record_of(task.plan, "failed", "ValueError: no"))
        return Gone("failed", "ended")

    world = World(script)
    ended = told.run(world, tasks)
    assert len(world.submitted) == 3
    assert {record.plan_hash: record.status for record in ended.records} == {
        task.plan.hash(): "failed" if task is tasks[1] else "ok" for task in tasks
    }
    assert ended.lost == {}


@pytest.mark.parametrize("left", [None, "interrupted"])
def test_a_lost_run_is_tried_again_and_only_so_often(tasks: list[Task], told: Told, left: Status | None) -> None:
    def script(world: World, task: Task, second: int) -> State:
        if task.plan != tasks[0].plan:
            return usual(world, task, second)
        if second < 3:
            return Running(second, 0.5)
        if left is not None:
            write_record(task.store, record_of(task.plan, left))
        return Gone("its node went away", "lost")

    world = World(script)
    ended = told.run(world, tasks, retries=2)
    assert world.tries(tasks[0]) == 3
    assert ended.lost == {tasks[0].plan.hash(): "its node went away"}
    assert len(ended.records) == 2
    assert [line for line in told.lines if "its node went away" in line] == told.lines
    assert "the same command goes on" in told.lines[-1]
    assert len(told.lines) == 3


def test_a_run_that_comes_back_from_its_loss_is_a_record(tasks: list[Task], told: Told) -> None:
    def script(world: World, task: Task, second: int) -> State:
        if task.plan == tasks[2].plan and world.tries(task) == 1:
            return Running(9) if second < 3 else Gone("its worker was killed", "lost")
        return usual(world, task, second)

    world = World(script)
    assert len(told.run(world, tasks, retries=1).records) == 3
    assert len(world.submitted) == 4


def test_the_store_is_believed_before_the_engine(tasks: list[Task], told: Told) -> None:
    def script(world: World, task: Task, second: int) -> State:
        usual(world, task, second)
        return Running() if second < 7 else Gone("the node died after the record was written", "lost")

    world = World(script)
    ended = told.run(world, tasks)
    assert (len(world.submitted), len(ended.records), ended.lost) == (3, 3, {})


def test_a_record_from_before_is_not_taken_for_the_new_one(tasks: list[Task], told: Told) -> None:
    write_record(tasks[0].store, record_of(tasks[0].plan, "failed", "an earlier day"))
    world = World(lambda world, task, second: Gone("gone", "lost"))
    ended = told.run(world, tasks[:1], retries=0)
    assert (ended.records, list(ended.lost)) == ([], [tasks[0].plan.hash()])


def test_a_record_that_a_slow_file_system_shows_late_is_waited_for(tasks: list[Task], told: Told) -> None:
    def script(world: World, task: Task, second: int) -> State:
        if second >= 40:
            write_record(task.store, record_of(task.plan))
        return Gone("ok", "ended")

    world = World(script)
    ended = told.run(world, tasks[:1])
    assert (len(world.submitted), len(ended.records)) == (1, 1)


def test_an_end_without_a_record_is_a_loss(tasks: list[Task], told: Told) -> None:
    world = World(lambda world, task, second: Gone("it said that all was well", "ended"))
    ended = told.run(world, tasks[:1], retries=1)
    assert (len(world.submitted), list(ended.lost)) == (2, [tasks[0].plan.hash()])
    assert world.now >= 2 * rules.SETTLE_S


def test_a_record_comes_back_by_value_where_no_store_is_shared(tasks: list[Task], told: Told) -> None:
    world = World(lambda world, task, second: Gone("ok", "ended", record_of(task.plan)))
    ended = told.run(world, tasks)
    assert sorted(record.plan_hash for record in read_records([tasks[0].store])) == sorted(
        record.plan_hash for record in ended.records
    )
    assert len(ended.records) == 3


def test_memory_that_ran_out_beside_others_counts_only_alone(tasks: list[Task], told: Told) -> None:
    def script(world: World, task: Task, second: int) -> State:
        if task.resources.gpus < 1:
            return Gone("out of memory", "crowded")
        write_record(task.store, record_of(task.plan, "out_of_memory", "alone too"))
        return Gone("out of memory", "ended")

    world = World(script)
    ended = told.run(world, [replace(tasks[0], resources=Resources(1, 0.5))], retries=0)
    assert [task.resources.gpus for task in world.submitted] == [0.5, 1.0]
    assert [record.error for record in ended.records] == ["alone too"]


def test_a_node_that_refuses_ends_the_command_in_one_line(tasks: list[Task], told: Told) -> None:
    def script(world: World, task: Task, second: int) -> State:
        return Gone("node b: its code is another", "refused") if task is tasks[1] else Running()

    world = World(script)
    with pytest.raises(ValueError, match="its code is another"):
        told.run(world, tasks)
    assert sorted(world.cancelled) == ["job-1", "job-2", "job-3"]


def test_ctrl_c_ends_what_is_in_hand(tasks: list[Task], told: Told) -> None:
    world = World(usual, stop_at=3)
    with pytest.raises(Interrupted, match="the same command goes on"):
        told.run(world, tasks)
    assert sorted(world.cancelled) == ["job-1", "job-2", "job-3"]


def test_runs_that_do_not_end_are_not_waited_for_for_ever(tasks: list[Task], told: Told) -> None:
    world = World(lambda world, task, second: Running(), stop_at=3)
    world.cancel = lambda handle: None  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        told.run(world, tasks)
    assert rules.GRACE_S <= world.now < rules.GRACE_S + 10


class Dead(BaseException):
    """The command is killed: nothing of it runs any more."""


def test_the_next_command_takes_up_what_the_engine_still_has(
    tasks: list[Task], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(usual, outlives=True)

    def die(seconds: float) -> None:
        raise Dead

    with monkeypatch.context() as killed:
        killed.setattr(rules._Following, "stop", lambda self, hands: None)
        with pytest.raises(Dead):
            follow(tasks, world, told.events.append, 2, clock=Clock(lambda: world.now, die))
    assert len(world.submitted) == 3
    world.begun.pop("job-2")
    ended = told.run(world, tasks)
    assert world.submitted[3:] == [tasks[1]]
    assert (len(ended.records), ended.lost) == (3, {})
    assert len([line for line in told.lines if "goes on as job-" in line]) == 2
    assert not list((tasks[0].store / journal.FOLDER).iterdir())


def test_a_run_that_ends_while_the_next_command_begins_is_not_submitted_again(tasks: list[Task], told: Told) -> None:
    """The command saw no record; by the time it asks the engine, the job is gone and the record is there."""
    world = World(lambda world, task, second: usual(world, task, 9), outlives=True)
    journal.note(tasks[0].store, tasks[0].plan, journal.Entry("fake", world.submit(tasks[0]), None))
    ended = told.run(world, tasks[:1])
    assert (len(world.submitted), len(ended.records), ended.lost) == (1, 1, {})


def test_a_run_in_another_engines_hands_is_not_handed_over_again(tasks: list[Task], told: Told) -> None:
    journal.note(tasks[0].store, tasks[0].plan, journal.Entry("other", "17", None))
    world = World(usual, outlives=True)
    with pytest.raises(ValueError, match=r"handed to other \(17\).*--on other"):
        told.run(world, tasks)
    assert world.submitted == []
    (tasks[0].store / journal.FOLDER / tasks[0].plan.hash()).write_text("{")
    with pytest.raises(ValueError, match="remove it"):
        told.run(world, tasks)


def taking(most: int) -> World:
    """An engine that has at most so many runs in hand, and says so to the next one."""
    world = World(usual, outlives=True)
    submit = world.submit

    def limited(task: Task) -> str:
        in_hand = [each for each in world.begun if not isinstance(world.poll(each), Gone)]
        if len(in_hand) >= most:
            raise NotTaken("sbatch refuses the job: QOSMaxSubmitJobPerUserLimit")
        return submit(task)

    world.submit = limited  # type: ignore[method-assign]
    return world


def test_what_an_engine_does_not_take_waits_for_those_in_hand(tasks: list[Task], told: Told) -> None:
    world = taking(2)
    ended = told.run(world, tasks)
    assert world.submitted == tasks
    assert (len(ended.records), ended.lost, world.cancelled) == (3, {}, [])
    assert told.lines == ["1 runs wait for those in hand to end: sbatch refuses the job: QOSMaxSubmitJobPerUserLimit"]


def test_a_refusal_leaves_the_jobs_of_an_earlier_command_alone(tasks: list[Task], told: Told) -> None:
    world = taking(1)
    journal.note(tasks[0].store, tasks[0].plan, journal.Entry("fake", world.submit(tasks[0]), None))
    ended = follow(tasks, world, told.events.append, 2, told.lines.append, world.clock, detach=True)
    assert (ended.records, world.submitted, world.cancelled) == ([], tasks[:1], [])
    assert told.lines[-1] == "2 runs are not handed over: give the same command again once others have ended"
    assert len(told.run(world, tasks).records) == 3


def test_an_engine_that_takes_no_run_ends_the_command(tasks: list[Task], told: Told) -> None:
    with pytest.raises(NotTaken, match="sbatch refuses the job"):
        told.run(taking(0), tasks)


def test_two_commands_do_not_hand_out_the_runs_of_one_store(tasks: list[Task], told: Told) -> None:
    with journal.alone(tasks[0].store), pytest.raises(ValueError, match="another command hands out runs"):
        told.run(World(usual), tasks)
    assert len(told.run(World(usual), tasks).records) == 3


@pytest.mark.parametrize("outlives", [False, True])
def test_a_command_that_is_refused_leaves_the_others_nonce(
    outlives: bool, tasks: list[Task], told: Told, runtime: Runtime
) -> None:
    store = tasks[0].store
    (store / node.NONCE).write_text("the other's")
    second = away.Away(World(usual, outlives=outlives), Resources(), 0, 1, told.lines.append)
    with journal.alone(store), pytest.raises(ValueError, match="another command hands out runs"):
        second([tasks[0].plan], runtime, store, {}, told.events.append)
    assert (store / node.NONCE).read_text() == "the other's"


def test_a_nonce_that_jobs_still_look_for_stays(tasks: list[Task], told: Told, runtime: Runtime) -> None:
    store = tasks[0].store
    world = World(lambda world, task, second: usual(world, task, 9))
    command = away.Away(world, Resources(), 0, 1, told.lines.append)
    (store / node.NONCE).write_text("of a command that was killed")
    command([tasks[0].plan], runtime, store, {}, told.events.append)
    assert world.submitted[0].nonce != "of a command that was killed"
    assert not (store / node.NONCE).exists()
    (store / node.NONCE).write_text("of jobs")
    journal.note(store, tasks[2].plan, journal.Entry("slurm", "17", None))
    command([tasks[1].plan], runtime, store, {}, told.events.append)
    assert world.submitted[1].nonce == "of jobs"
    assert (store / node.NONCE).read_text() == "of jobs"


# The node side, without its launcher


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand-in for the launcher: writes the record that the plan's seed asks for, and keeps what it was given."""
    given: list[Any] = []
    statuses: tuple[Status, ...] = ("ok", "out_of_memory", "failed")

    def launch(plans: Any, runtime: Runtime, store: Path, predicted: Any, listen: Any, reserved: Any) -> list[Record]:
        given.append((plans, runtime, store, predicted, reserved))
        if plans[0].seed > 2:
            raise StoreError("the disk is full")
        listen(Event(plans[0], step=2, loss=0.25, device="H100"))
        record = record_of(plans[0], statuses[plans[0].seed], "as asked" if plans[0].seed else None)
        write_record(store, record)
        listen(Event(plans[0], record=record))
        return [record]

    monkeypatch.setattr(node, "launch", launch)
    return given


def test_a_node_that_shares_the_store_writes_into_it(tasks: list[Task], launched: list[Any]) -> None:
    (tasks[0].store / node.NONCE).write_text("abc")
    steps: list[Any] = []
    gone = node.run_task(replace(tasks[0], predicted=5, reserved=7, nonce="abc"), lambda *step: steps.append(step))
    assert (gone.cause, gone.record, steps) == ("ended", None, [(2, 0.25, "H100")])
    assert read_record(record_path(tasks[0].store, tasks[0].plan)).status == "ok"
    ((plans, runtime, store, predicted, reserved),) = launched
    key = tasks[0].plan.hash()
    assert (plans, store, predicted, reserved) == ([tasks[0].plan], tasks[0].store, {key: 5}, {key: 7})
    assert (runtime.lock_wait_s or 0) > 90
    assert node.run_task(replace(tasks[0], nonce="abc"), lambda *step: None).why == "it has a record already"
    assert len(launched) == 1


def test_a_node_without_the_store_gives_its_record_back(tasks: list[Task], launched: list[Any], tmp_path: Path) -> None:
    (tmp_path / node.NONCE).write_text("another command's")
    gone = node.run_task(replace(tasks[2], nonce="abc"), lambda *step: None)
    assert gone.record is not None
    assert (gone.record.status, gone.cause) == ("failed", "ended")
    assert not record_path(tmp_path, tasks[2].plan).exists()
    assert not launched[0][2].exists()
    beside = replace(tasks[0], runtime=replace(tasks[0].runtime, beside=Beside(tmp_path, model="merged")))
    with pytest.raises(node.Refusal, match="saved models and trackers would be lost"):
        node.run_task(beside, lambda *step: None)


def test_memory_that_runs_out_on_a_shared_device_leaves_no_record(tasks: list[Task], launched: list[Any]) -> None:
    (tasks[1].store / node.NONCE).write_text("abc")
    packed = replace(tasks[1], resources=Resources(1, 0.5), nonce="abc")
    assert node.run_task(packed, lambda *step: None).cause == "crowded"
    assert not record_path(packed.store, packed.plan).exists()
    alone = replace(packed, resources=Resources(1, 1.0))
    assert node.run_task(alone, lambda *step: None).cause == "ended"
    assert read_record(record_path(packed.store, packed.plan)).status == "out_of_memory"


def test_memory_that_runs_out_beside_other_runs_of_a_node_is_a_loss(tasks: list[Task], launched: list[Any]) -> None:
    (tasks[1].store / node.NONCE).write_text("abc")
    beside = replace(tasks[1], runtime=replace(tasks[1].runtime, workers=2), nonce="abc")
    assert node.run_task(beside, lambda *step: None) == Gone("beside other runs: as asked", "lost")
    assert not record_path(beside.store, beside.plan).exists()


def test_a_store_that_fails_there_is_a_refusal(make_plan: Any, tasks: list[Task], launched: list[Any]) -> None:
    with pytest.raises(node.Refusal, match="the disk is full"):
        node.run_task(replace(tasks[0], plan=make_plan(seed=3)), lambda *step: None)


def test_another_code_on_a_node_is_refused(tmp_path: Path) -> None:
    node.check_code(code_digest(), "a")
    with pytest.raises(node.Refusal, match=r"node a: its code is another .*check out the same commit"):
        node.check_code("0" * 12, "a")
    for name, text in (("suites/a.py", "1"), ("gnlorp/b.py", "2"), ("pyproject.toml", "3"), ("suites/c.pyc", "4")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = code_digest(tmp_path)
    (tmp_path / "suites" / "c.pyc").write_text("5")
    assert code_digest(tmp_path) == before
    (tmp_path / "suites" / "a.py").write_text("2")
    assert code_digest(tmp_path) != before


def test_a_copy_of_the_code_without_its_commit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a working_dir of Ray is: the same code, so that its digest says nothing, and no .git."""
    monkeypatch.setattr(node, "code_version", lambda root: (None, None))
    node.check_commit(None, "a")
    with pytest.raises(node.Refusal, match=r"node a: .*says no commit.*with \.git"):
        node.check_commit("0" * 40, "a")
    monkeypatch.setattr(node, "code_version", lambda root: ("1" * 40, False))
    node.check_commit("0" * 40, "a")


def test_a_node_that_joined_as_the_loopback_device_is_named() -> None:
    assert cluster.loopback_nodes({"a": "10.0.0.1", "b": "127.0.0.1"}) == ["b"]
    assert cluster.loopback_nodes({"a": "127.0.0.1", "b": "127.0.0.1"}) == []
    assert cluster.loopback_nodes({"a": "10.0.0.1"}) == []


def test_a_run_that_was_told_to_make_room_is_lost_and_has_not_ended(
    tasks: list[Task], launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tasks[0].store / node.NONCE).write_text("abc")
    record = record_of(tasks[0].plan, "interrupted", "asked to end by SIGTERM, after step 9")
    monkeypatch.setattr(node, "launch", lambda *given: [record])
    gone = node.run_task(replace(tasks[0], nonce="abc"), lambda *step: None)
    assert gone == Gone("asked to end by SIGTERM, after step 9", "lost")


def test_a_lock_is_waited_for_as_long_as_the_runtime_says(make_plan: Any, tmp_path: Path) -> None:
    with (
        checkpoint.held(tmp_path, make_plan()),
        pytest.raises(checkpoint.CheckpointError, match="another process"),
        checkpoint.held(tmp_path, make_plan(), wait_s=0.05),
    ):
        pass


# From the command line to an engine


def test_a_run_has_the_devices_that_its_launcher_was_given(
    make_plan: Any, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    def execute(plan: Plan, *given: Any) -> Record:
        seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        report, code = given[2], given[-1]
        report(3, 0.5)
        assert code == ("c" * 40, False)
        return record_of(plan, "failed")

    monkeypatch.setattr("suites.run.execute.execute", execute)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    before = signal.getsignal(signal.SIGINT)
    said: list[Any] = []
    pipe = SimpleNamespace(send=said.append, close=lambda: None)
    try:
        for given in (None, "2"):
            asked = replace(runtime, visible_devices=given)
            worker._work(make_plan(), asked, tmp_path, (None, None), ("c" * 40, False), pipe)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["0,1,2,3", "2"]
    assert said == [("step", 3, 0.5, "cpu")] * 2


@pytest.mark.parametrize(
    ("available", "resources", "runs"),
    [
        ({"CPU": 2.0}, Resources(1), 2),
        ({"CPU": 16.0}, Resources(8), 2),
        ({"CPU": 4.0}, Resources(8), 0),
        ({}, Resources(1), 0),
        ({"CPU": 16.0}, Resources(1, 1.0), 0),
        ({"CPU": 16.0, "GPU": 8.0}, Resources(1, 1.0), 8),
        ({"CPU": 16.0, "GPU": 8.0}, Resources(4, 1.0), 4),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(1, 0.5), 4),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(1, 0.4), 4),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(1, 1 / 3), 6),
        ({"CPU": 16.0, "GPU": 2.0}, Resources(1, 0.1), 16),
    ],
)
def test_runs_are_counted_node_by_node(available: dict[str, float], resources: Resources, runs: int) -> None:
    assert cluster.fits(available, resources) == runs


def test_amounts_are_said_for_people() -> None:
    nodes = ({"CPU": 8.0, "GPU": 4.0, "accelerator_type:H100": 1.0}, {"CPU": 2.0})
    assert cluster.amounts(*nodes) == "10 CPUs, 4 GPUs (H100)"
    assert cluster.amounts(nodes[1]) == "2 CPUs, 0 GPUs"


@pytest.mark.parametrize("address", ["ray://head:10001", "head", ":6379", "head:port"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="must be host:port"):
        cluster.check_address(address)


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        cluster.check_address(f"127.0.0.1:{port}")
    with pytest.raises(ValueError, match="no Ray answers there"):
        cluster.check_address(f"127.0.0.1:{port}")


def test_the_token_that_is_kept_is_shown_to_a_ray_that_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mode(where: str) -> str | None:
        # Set first, so that what the function leaves is undone after the test.
        monkeypatch.setenv("RAY_AUTH_MODE", "")
        monkeypatch.delenv("RAY_AUTH_MODE")
        cluster.show_token(where)
        return os.environ.get("RAY_AUTH_MODE")

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert mode("head:6379") is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("abc")
    assert (mode("head:6379"), mode("auto"), mode(cluster.LOCAL)) == ("token", "token", None)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert mode("head:6379") is None
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    assert mode("head:6379") == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster.show_token("head:6379")
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_a_run_is_given_its_threads_or_a_gpu(runtime: Runtime) -> None:
    assert away.size_of_a_run(replace(runtime, threads=4), None) == Resources(4)
    on_gpu = replace(runtime, device=torch.device("cuda"), threads=16)
    assert away.size_of_a_run(on_gpu, None) == Resources(1, 1.0)
    assert away.size_of_a_run(on_gpu, 0.5) == Resources(1, 0.5)
    for wrong, near in ((0.0, "0.5"), (2.0, "1"), (-1.0, "0.5")):
        with pytest.raises(ValueError, match=rf"gpus-per-run .*nearest allowed value: {near}\)"):
            away.size_of_a_run(on_gpu, wrong)
    with pytest.raises(ValueError, match="--device cuda"):
        away.size_of_a_run(runtime, 0.5)


def test_paths_mean_the_same_on_a_node(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = replace(runtime, model_dir=Path("model"), beside=Beside(Path("out")))
    found = away.absolute(given)
    assert (found.model_dir, found.beside.folder) == (tmp_path / "model", tmp_path / "out")
    assert away.absolute(runtime) == runtime


def test_away_hands_over_what_the_launcher_would_be_given(tasks: list[Task], told: Told) -> None:
    world = World(usual)
    nonces: list[str] = []

    def check(store: Path, runtime: Runtime, nonce: str) -> None:
        assert (store / node.NONCE).read_text() == nonce
        nonces.append(nonce)

    size = Resources(2, 0.5)
    out = away.Away(world, size, 1, 2, told.lines.append, check)
    plan, store = tasks[0].plan, tasks[0].store
    world.pause_s = 0.0
    world.script = lambda world, task, second: usual(world, task, 9)
    (record,) = out([plan], tasks[0].runtime, store, {plan.hash(): 5}, told.events.append, {plan.hash(): 7})
    assert world.submitted == [Task(plan, tasks[0].runtime, store, 5, 7, size, nonces[0])]
    assert (record.status, len(nonces[0])) == ("ok", 32)
    assert not (store / node.NONCE).exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--on", "rai"), ("unknown engine 'rai'", "known are here, ray, slurm", "nearest: ray")),
        (("--address", "head:1"), ("--address head:1", "is for --on ray, not for --on here")),
        (("--retries", "3"), ("--retries 3", "is for --on ray or slurm")),
        (("--gpus-per-run", "0.5"), ("--gpus-per-run 0.5", "is for --on ray")),
        (("--gpus-per-run", "0.5", "--on", "slurm"), ("--gpus-per-run 0.5", "is for --on ray")),
        (("--slurm", "partition=gpu", "--on", "ray"), ("--slurm partition=gpu", "is for --on slurm")),
        (("--detach", "--on", "ray"), ("--detach: is for --on slurm, not for --on ray",)),
        (("--detach",), ("--detach: is for --on slurm, not for --on here",)),
        (("--pack", "--on", "slurm"), ("--pack: is for --on ray",)),
        (("--pack", "--gpus-per-run", "0.5", "--on", "ray"), ("give one of the two",)),
        (("--wait-nodes", "10m", "--on", "slurm"), ("--wait-nodes 10m", "is for --on ray, not for --on slurm")),
        (("--wait-nodes", "soon", "--on", "ray"), ("wait-nodes soon", "with s, m or h, such as 10m, or 0")),
        (("--on", "slurm"), ("submitit is not installed", "pip install 'gnlorp[slurm]'")),
        (("--on", "slurm", "--slurm", "partitoin=gpu"), ("unknown setting of --slurm", "nearest: partition")),
        (("--on", "slurm", "--slurm", "time=never"), ("time=never", "H:MM:SS")),
        (("--on", "slurm", "--slurm", "time=4"), ("time=4: must be at least 5 minutes", "nearest allowed value: 5")),
        (("--on", "slurm", "--slurm", "cpus=0"), ("cpus=0", "nearest allowed value: 1")),
        (("--on", "ray", "--retries=-1"), ("retries -1", "nearest allowed value: 0")),
        (("--on", "ray"), ("Ray is not installed", "pip install 'gnlorp[ray]'")),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in ("ray", "submitit") else found(name, *more)
    )
    few = ("--seeds", "0", "--task", "cola", "--method", "lora", "--device", "cpu")
    result = CliRunner().invoke(app, ("run", "glue", *few, *arguments))
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert all(part in result.stderr for part in parts), result.stderr
    assert not list(tmp_path.rglob("*.json"))
