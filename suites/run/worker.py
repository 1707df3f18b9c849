"""One run in a process of its own: started, listened to, and recorded however it ends."""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import torch

from results.schema import Plan, Record, Status
from results.store import FINAL, StoreError, read_record, write_record
from suites.catalogue import catalogue_for
from suites.measure.environment import ROOT, CodeVersion, code_version, environment, short_device_name
from suites.run import checkpoint, eviction, saved
from suites.suite import Runtime

GRACE_S = 10.0
REPORT_EVERY_S = 0.2


@dataclass(frozen=True)
class Event:
    """What the launcher tells its listener: a run has started, stands at a step, or has ended with a record.

    `device`: the name of the GPU that it is on, or "cpu"; None: not told yet.
    """

    plan: Plan
    step: int = 0
    loss: float | None = None
    record: Record | None = None
    device: str | None = None


Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Launch:
    """What the runs of one launch share.

    `predicted`, `reserved`: plan hash -> bytes said before the run, of tensors and of a device's allocator.
    `code`: what the fork server has loaded, whatever becomes of the files while runs go on.
    """

    runtime: Runtime
    store: Path
    predicted: Mapping[str, int | None]
    listen: Listener
    reserved: Mapping[str, int] = field(default_factory=dict)
    code: CodeVersion = field(default_factory=lambda: code_version(ROOT))


@dataclass
class Worker:
    """A run in a process of its own; `earlier` and `oom_kills` are as they were before it started.

    `crowded`: other runs of the launch went on beside it. `ended`: it had a final record already.
    """

    plan: Plan
    process: BaseProcess
    pipe: Connection
    earlier: tuple[int, int] | None
    oom_kills: int | None
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    failure: str | None = None
    crowded: bool = False
    ended: bool = False


def start(context: ForkServerContext, plan: Plan, launch: Launch) -> Worker:
    """Start a run and return its worker."""
    ours, theirs = context.Pipe(duplex=False)
    said = (launch.predicted.get(plan.hash()), launch.reserved.get(plan.hash()))
    given = (plan, launch.runtime, launch.store, said, launch.code, theirs)
    process = context.Process(target=_work, args=given, name=plan.label, daemon=True)
    worker = Worker(plan, process, ours, stamp(record_path(launch.store, plan)), oom_kills())
    process.start()
    theirs.close()
    launch.listen(Event(plan))
    return worker


def _work(
    plan: Plan,
    runtime: Runtime,
    store: Path,
    said: tuple[int | None, int | None],
    code: CodeVersion,
    pipe: Connection,
) -> None:
    """Body of a worker process: run, write the record, say what went wrong with the writing if anything did."""
    from suites.run.execute import execute

    eviction.heed()
    signal.signal(signal.SIGINT, _interrupt_once)
    begun = False
    torch.set_num_threads(runtime.threads)
    if runtime.visible_devices is not None:
        # A process keeps the fork server's environment, not that of whoever asked for it; no device was touched yet.
        os.environ["CUDA_VISIBLE_DEVICES"] = runtime.visible_devices

    def tell(step: int, loss: float) -> None:
        nonlocal begun
        if not begun:
            # Before the first step there was nothing to save.
            signal.signal(signal.SIGINT, _save_first)
            begun = True
        try:
            pipe.send(("step", step, loss, short_device_name(runtime.device)))
        except BrokenPipeError:
            # Nobody waits for this run any more; the next one goes on where it stands now.
            eviction.ask("its launcher is gone")

    try:
        with checkpoint.held(store, plan, runtime.lock_wait_s):
            if has_ended(store, plan):
                # Another command has finished it since this one looked at what is missing.
                pipe.send(("ended",))
                return
            report = now_and_then(plan, tell)
            record = execute(plan, runtime, said[0], report, checkpoint.folder_of(store, plan), said[1], code)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            keep(store, record)
    except (StoreError, checkpoint.CheckpointError) as problem:
        pipe.send(("store", str(problem)))
    finally:
        pipe.close()


def now_and_then(plan: Plan, tell: Callable[[int, float], None]) -> Callable[[int, float], None]:
    """Return (step, loss) -> None, which passes on a step every `REPORT_EVERY_S` seconds, and the last one."""
    last = 0.0

    def report(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_EVERY_S or step == plan.training.steps:
            last = time.monotonic()
            tell(step, loss)

    return report


def keep(store: Path, record: Record) -> None:
    """Write a record, and its numbers beside the run's model; with a final one its checkpoints have done their work."""
    write_record(store, record)
    if record.status == "ok":
        saved.describe(store, record)
    if record.status in FINAL:
        checkpoint.remove(checkpoint.folder_of(store, record.plan))


def _save_first(number: int, frame: FrameType | None) -> None:
    """Have the run save its state after the step in hand; one that was asked to already ends at once."""
    if eviction.asked() is not None:
        _interrupt_once(number, frame)
    eviction.ask("interrupted by the user")


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    # The terminal and the launcher both signal; a second one must not tear the writing of the record.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def ready(active: list[Worker]) -> list[Worker]:
    """Wait a little, and return the workers that have something to say."""
    waiting_on = {worker.pipe: worker for worker in active}
    ready = multiprocessing.connection.wait(list(waiting_on), timeout=1.0)
    return [waiting_on[pipe] for pipe in ready if isinstance(pipe, Connection)]


def drain(worker: Worker, listen: Listener) -> bool:
    """Read what a worker has to say; True once it has closed its pipe."""
    try:
        while worker.pipe.poll():
            message = worker.pipe.recv()
            if message[0] == "step":
                listen(Event(worker.plan, step=message[1], loss=message[2], device=message[3]))
            elif message[0] == "ended":
                worker.ended = True
            else:
                worker.failure = message[1]
    except (EOFError, OSError):
        return True
    return False


def finish(worker: Worker, launch: Launch, interrupted: bool = False) -> Record | None:
    """Return the record of a run whose process is at its end, writing one where it wrote none.

    None, and no record: memory ran out beside other runs, which says nothing of this one.

    Raises:
        StoreError: the process could not write its record.
    """
    end(worker)
    if worker.failure is not None:
        raise StoreError(worker.failure)
    path = record_path(launch.store, worker.plan)
    written = worker.ended or stamp(path) not in (None, worker.earlier)
    record = read_record(path) if written else obituary(worker, launch.runtime, interrupted)
    if record.status == "out_of_memory" and worker.crowded and not worker.ended:
        if written:
            path.unlink()
        return None
    if not written:
        write_record(launch.store, record)
    launch.listen(Event(worker.plan, record=record))
    return record


def end(worker: Worker, grace_s: float = GRACE_S) -> None:
    """Wait for a process that is at its end, and kill one that does not come to it."""
    worker.process.join(grace_s)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.pipe.close()


def record_path(store: Path, plan: Plan) -> Path:
    """Return the file of a run's record."""
    return store / f"{plan.label}.json"


def has_ended(store: Path, plan: Plan) -> bool:
    """Whether the store holds a final record of a run.

    Raises:
        StoreError: a record that cannot be read.
    """
    path = record_path(store, plan)
    return path.exists() and read_record(path).status in FINAL


def stamp(path: Path) -> tuple[int, int] | None:
    """Return what tells one version of a record from the next; None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns


def oom_kills() -> int | None:
    """Return how many processes the kernel has killed for want of memory; None where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(count) for name, _, count in (line.partition(" ") for line in lines) if name == "oom_kill"), None)


def obituary(worker: Worker, runtime: Runtime, interrupted: bool) -> Record:
    """Return the record of a run whose process died without writing one."""
    code = worker.process.exitcode
    status: Status = "failed"
    error = f"the process ended with exit code {code}"
    if interrupted:
        status, error = "interrupted", "interrupted by the user"
    elif code is not None and eviction.is_notice(code):
        status, error = "interrupted", f"asked to end by {signal.Signals(-code).name} before it had begun"
    elif code is not None and code < 0:
        error = f"the process was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            kills = oom_kills()
            if kills is None or worker.oom_kills is None:
                error += "; whether memory ran out is not known: this system does not count such kills"
            elif kills > worker.oom_kills:
                status, error = "out_of_memory", f"{error}, and the kernel says that memory ran out"
            else:
                error += ", but not by the kernel for want of memory"
    return Record(
        plan=worker.plan,
        plan_hash=worker.plan.hash(),
        status=status,
        error=error,
        started_at=worker.started_at,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(runtime.device, runtime.threads, runtime.workers),
        catalogue=catalogue_for(worker.plan),
    )
