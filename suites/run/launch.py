"""Run plans in worker processes: one process a run, so that a crash or an exhausted memory ends that run alone.

The processes come from a fork server that has the libraries loaded already and never touches a device, so that a fresh
process costs a few milliseconds and works with CUDA.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch

from results.schema import Plan, Record, Status
from results.store import FINAL, StoreError, read_record, write_record
from suites.catalogue import catalogue_for
from suites.measure.environment import environment, usable_cpus
from suites.run import checkpoint
from suites.suite import Runtime

GRACE_S = 10.0
REPORT_EVERY_S = 0.2
PRELOAD = ["suites.run.preload"]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Event:
    """What the launcher tells its listener: a run has started, stands at a step, or has ended with a record."""

    plan: Plan
    step: int = 0
    loss: float | None = None
    record: Record | None = None


@dataclass
class _Worker:
    plan: Plan
    process: BaseProcess
    pipe: Connection
    earlier: tuple[int, int] | None
    oom_kills: int | None
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    failure: str | None = None


Listener = Callable[[Event], None]


class Interrupted(KeyboardInterrupt):
    """The user stopped the launch; the runs in hand are recorded as interrupted."""

    def __str__(self) -> str:
        return "the runs in hand are recorded as such; the same command goes on where it stopped"


def launch(
    plans: Sequence[Plan],
    runtime: Runtime,
    store: Path,
    predicted: dict[str, int | None],
    listen: Listener,
) -> list[Record]:
    """Run `plans`, `runtime.workers` at a time, and return their records as they ended.

    Args:
        predicted: plan hash -> peak bytes said before the run.

    Raises:
        StoreError: a record cannot be written; the other runs are stopped first.
        Interrupted: Ctrl-C; the runs in hand have a record of status interrupted.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    waiting = list(plans)
    active: list[_Worker] = []
    records: list[Record] = []
    try:
        while waiting or active:
            while waiting and len(active) < runtime.workers:
                active.append(_start(context, waiting.pop(0), runtime, store, predicted, listen))
            for worker in _ready(active):
                if _drain(worker, listen):
                    active.remove(worker)
                    records.append(_finish(worker, runtime, store, listen))
    except KeyboardInterrupt as stop:
        with _undisturbed():
            _signal(active, signal.SIGINT)
            for worker in active:
                _end(worker)
            for worker in active:
                records.append(_finish(worker, runtime, store, listen, interrupted=True))
        raise Interrupted from stop
    except BaseException:
        with _undisturbed():
            _signal(active, signal.SIGTERM)
            for worker in active:
                _end(worker)
        raise
    return records


def in_processes(
    work: Callable[..., Found], shares: Sequence[tuple[Any, ...]], workers: int, threads: int
) -> Iterator[Found]:
    """Yield `work(*share)` of each share as it is finished, for work that is no run; Ctrl-C ends it at once.

    `workers` at a time, in processes from such a fork server; a single worker's or share's work is done here, in order.
    """
    if workers == 1 or len(shares) <= 1:
        yield from (work(*share) for share in shares)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with ProcessPoolExecutor(workers, context, _settle, (threads,)) as pool:
        waiting = [pool.submit(work, *share) for share in shares]
        try:
            yield from (done.result() for done in as_completed(waiting))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _settle(threads: int) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def launch_here(
    plans: Sequence[Plan], runtime: Runtime, store: Path, predicted: dict[str, int | None], listen: Listener
) -> list[Record]:
    """Run `plans` one after the other in this process, as one of the group's; process 0 alone writes records.

    Raises:
        StoreError: a record cannot be written.
        RuntimeError: a run did not end well on every process: the group cannot be trusted after that.
    """
    from suites.run.execute import execute

    torch.set_num_threads(runtime.threads)
    records = []
    for plan in plans:
        runtime.group.wait()
        listen(Event(plan))
        last = 0.0

        def report(step: int, loss: float, plan: Plan = plan) -> None:
            nonlocal last
            if time.monotonic() - last > REPORT_EVERY_S or step == plan.training.steps:
                last = time.monotonic()
                listen(Event(plan, step=step, loss=loss))

        predicted_bytes = predicted.get(plan.hash())
        record = execute(plan, runtime, predicted_bytes, report, checkpoint.folder_of(store, plan))
        if runtime.group.leads:
            keep(store, record)
        listen(Event(plan, record=record))
        records.append(record)
        if record.status == "interrupted":
            raise Interrupted
        if record.status != "ok":
            raise RuntimeError(f"{plan.label}: {record.status} on process {runtime.group.rank}: {record.error}")
    return records


def _start(
    context: multiprocessing.context.ForkServerContext,
    plan: Plan,
    runtime: Runtime,
    store: Path,
    predicted: dict[str, int | None],
    listen: Listener,
) -> _Worker:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_work, args=(plan, runtime, store, predicted.get(plan.hash()), theirs), name=plan.label, daemon=True
    )
    worker = _Worker(plan, process, ours, _stamp(_record_path(store, plan)), oom_kills())
    process.start()
    theirs.close()
    listen(Event(plan))
    return worker


def _work(plan: Plan, runtime: Runtime, store: Path, predicted: int | None, pipe: Connection) -> None:
    """Body of a worker process: run, write the record, say what went wrong with the writing if anything did."""
    from suites.run.execute import execute

    signal.signal(signal.SIGINT, _interrupt_once)
    torch.set_num_threads(runtime.threads)
    last = 0.0

    def report(step: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > REPORT_EVERY_S or step == plan.training.steps:
            last = now
            try:
                pipe.send(("step", step, loss))
            except BrokenPipeError:
                # The launcher is gone: nobody waits for this run any more.
                raise KeyboardInterrupt from None

    try:
        with checkpoint.held(store, plan):
            record = execute(plan, runtime, predicted, report, checkpoint.folder_of(store, plan))
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            keep(store, record)
    except (StoreError, checkpoint.CheckpointError) as problem:
        pipe.send(("store", str(problem)))
    pipe.close()


def keep(store: Path, record: Record) -> None:
    """Write a record; with a final one the run's checkpoints have done their work."""
    write_record(store, record)
    if record.status in FINAL:
        checkpoint.remove(checkpoint.folder_of(store, record.plan))


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    # The terminal and the launcher both signal; a second one must not tear the writing of the record.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _ready(active: list[_Worker]) -> list[_Worker]:
    waiting_on = {worker.pipe: worker for worker in active}
    ready = multiprocessing.connection.wait(list(waiting_on), timeout=1.0)
    return [waiting_on[pipe] for pipe in ready if isinstance(pipe, Connection)]


def _drain(worker: _Worker, listen: Listener) -> bool:
    """Read what a worker has to say; True once it has closed its pipe."""
    try:
        while worker.pipe.poll():
            message = worker.pipe.recv()
            if message[0] == "step":
                listen(Event(worker.plan, step=message[1], loss=message[2]))
            else:
                worker.failure = message[1]
    except (EOFError, OSError):
        return True
    return False


def _finish(worker: _Worker, runtime: Runtime, store: Path, listen: Listener, interrupted: bool = False) -> Record:
    _end(worker)
    if worker.failure is not None:
        raise StoreError(worker.failure)
    path = _record_path(store, worker.plan)
    if _stamp(path) in (None, worker.earlier):
        record = _obituary(worker, runtime, interrupted)
        write_record(store, record)
    else:
        record = read_record(path)
    listen(Event(worker.plan, record=record))
    return record


def _end(worker: _Worker) -> None:
    worker.process.join(GRACE_S)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    worker.pipe.close()


def _record_path(store: Path, plan: Plan) -> Path:
    return store / f"{plan.label}.json"


def _stamp(path: Path) -> tuple[int, int] | None:
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


def _obituary(worker: _Worker, runtime: Runtime, interrupted: bool) -> Record:
    """Return the record of a run whose process died without writing one."""
    code = worker.process.exitcode
    status: Status = "failed"
    error = f"the process ended with exit code {code}"
    if interrupted:
        status, error = "interrupted", "interrupted by the user"
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


def _signal(active: list[_Worker], number: int) -> None:
    for worker in active:
        if worker.process.is_alive() and worker.process.pid is not None:
            os.kill(worker.process.pid, number)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep a second Ctrl-C from cutting short what the first one asked for: a grace period a worker at most."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def shared_out(runtime: Runtime, workers: int | None) -> Runtime:
    """Return `runtime` with workers and threads set: one worker on a GPU, else one thread a worker and a worker a core.

    The processes of a group share the cores and do one run at a time.

    Raises:
        ValueError: `workers` is below 1 or above the number of usable cores, or above 1 in a group.
    """
    cpus, size = usable_cpus(), runtime.group.size
    most = cpus if size == 1 else 1
    if workers is not None and not 1 <= workers <= most:
        rule = "the usable cores" if size == 1 else f"since {size} processes work on one run together"
        raise ValueError(
            f"workers {workers}: must be between 1 and {most}, {rule} "
            f"(nearest allowed value: {min(max(workers, 1), most)})"
        )
    chosen = workers or (1 if runtime.device.type == "cuda" else most)
    return replace(runtime, workers=chosen, threads=max(1, cpus // (chosen * size)))
