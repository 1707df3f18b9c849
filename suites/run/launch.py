"""Run plans in worker processes, one a run: a crash or an exhausted memory ends that run alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from results.schema import Plan, Record
from suites.run import checkpoint, eviction
from suites.run.forkserver import server
from suites.run.worker import (
    GRACE_S,
    Event,
    Launch,
    Listener,
    Worker,
    drain,
    end,
    finish,
    keep,
    now_and_then,
    ready,
    start,
)
from suites.suite import Runtime


class Interrupted(KeyboardInterrupt):
    """The user or a signal stopped the launch; the runs in hand are recorded as interrupted."""

    def __str__(self) -> str:
        return "the runs in hand are recorded as such; the same command goes on where it stopped"


def launch(
    plans: Iterable[Plan],
    runtime: Runtime,
    store: Path,
    predicted: dict[str, int | None],
    listen: Listener,
    reserved: Mapping[str, int] | None = None,
) -> list[Record]:
    """Run `plans`, `runtime.workers` at a time, and return their records as they ended.

    Args:
        plans: asked for the next one when there is room for it.
        predicted: plan hash -> peak bytes said before the run.
        reserved: plan hash -> bytes that a device's allocator should reserve, said before the run.

    Raises:
        StoreError: a record cannot be written; the other runs are stopped first.
        Interrupted: Ctrl-C, or a signal that asks to end (the runs save their state first); the runs in hand have a
            record of status interrupted.
    """
    with eviction.evictable():
        return _launch(plans, Launch(runtime, store, predicted, listen, reserved or {}))


def _launch(plans: Iterable[Plan], shared: Launch) -> list[Record]:
    context, runtime, listen = server(), shared.runtime, shared.listen
    waiting = iter(plans)
    active: list[Worker] = []
    records: list[Record] = []
    try:
        while True:
            while len(active) < runtime.workers and (plan := next(waiting, None)) is not None:
                active.append(start(context, plan, shared))
            if not active:
                break
            for worker in ready(active):
                if drain(worker, listen):
                    active.remove(worker)
                    records.append(finish(worker, shared))
    except KeyboardInterrupt as stop:
        evicted = isinstance(stop, eviction.Evicted)
        with _undisturbed():
            _signal(active, signal.SIGTERM if evicted else signal.SIGINT)
            for worker in active:
                end(worker, eviction.SAVE_S if evicted else GRACE_S)
            for worker in active:
                records.append(finish(worker, shared, interrupted=True))
        raise Interrupted from stop
    except BaseException:
        with _undisturbed():
            _signal(active, signal.SIGTERM)
            for worker in active:
                end(worker)
        raise
    return records


def launch_here(
    plans: Sequence[Plan],
    runtime: Runtime,
    store: Path,
    predicted: dict[str, int | None],
    listen: Listener,
    reserved: Mapping[str, int] | None = None,
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

        def tell(step: int, loss: float, plan: Plan = plan) -> None:
            listen(Event(plan, step=step, loss=loss))

        report = now_and_then(plan, tell)
        key = plan.hash()
        folder = checkpoint.folder_of(store, plan)
        record = execute(plan, runtime, predicted.get(key), report, folder, (reserved or {}).get(key))
        if runtime.group.leads:
            keep(store, record)
        listen(Event(plan, record=record))
        records.append(record)
        if record.status == "interrupted":
            raise Interrupted
        if record.status != "ok":
            raise RuntimeError(f"{plan.label}: {record.status} on process {runtime.group.rank}: {record.error}")
    return records


def _signal(active: list[Worker], number: int) -> None:
    for worker in active:
        if worker.process.is_alive() and worker.process.pid is not None:
            os.kill(worker.process.pid, number)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep a second signal from cutting short what the first one asked for: a grace period a worker at most."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [each for each in eviction.SIGNALS if signal.getsignal(each) is eviction.raise_]
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, *ours)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
