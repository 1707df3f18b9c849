"""Run plans in worker processes, one a run: a crash or an exhausted memory ends that run alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType

import torch

from results.schema import Plan, Record
from suites.run import checkpoint, eviction
from suites.run.forkserver import server
from suites.run.worker import (
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


class GroupError(ValueError):
    """A run that did not end alike on every process of a group: the group cannot be trusted after that."""


def launch(
    plans: Iterable[Plan],
    runtime: Runtime,
    store: Path,
    predicted: dict[str, int | None],
    listen: Listener,
    reserved: Mapping[str, int] | None = None,
) -> list[Record]:
    """Run `plans`, `runtime.workers` at a time, and return their records as they ended.

    A run whose memory runs out beside others is run once more, alone, after all of them.

    Args:
        plans: asked for the next one when there is room for it.
        predicted: plan hash -> peak bytes said before the run.
        reserved: plan hash -> bytes that a device's allocator should reserve, said before the run.

    Raises:
        StoreError: a record cannot be written; the other runs are stopped first.
        Interrupted: Ctrl-C, or a signal that asks to end; the runs save their state first, unless Ctrl-C is pressed
            again, and those in hand have a record of status interrupted.
    """
    with eviction.evictable():
        return _launch(plans, Launch(runtime, store, predicted, listen, reserved or {}))


def _launch(plans: Iterable[Plan], shared: Launch) -> list[Record]:
    context, runtime, listen = server(), shared.runtime, shared.listen
    waiting = iter(plans)
    active: list[Worker] = []
    records: list[Record] = []
    crowded_out: list[Plan] = []
    try:
        while True:
            while len(active) < runtime.workers and (plan := next(waiting, None)) is not None:
                active.append(start(context, plan, shared))
            if len(active) > 1:
                for worker in active:
                    worker.crowded = True
            if not active and crowded_out:
                active.append(start(context, crowded_out.pop(0), shared))
            if not active:
                break
            for worker in ready(active):
                if drain(worker, listen):
                    active.remove(worker)
                    record = finish(worker, shared)
                    if record is None:
                        crowded_out.append(worker.plan)
                    else:
                        records.append(record)
    except KeyboardInterrupt as stop:
        with _undisturbed(active):
            _signal(active, signal.SIGTERM)
            for worker in active:
                end(worker, eviction.SAVE_S)
            for worker in active:
                finish(worker, shared, interrupted=True)
        raise Interrupted from stop
    except BaseException:
        with _undisturbed(active):
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

    A run that diverges does so on every process, since loss and norm are those of all: the next ones follow.

    Raises:
        StoreError: a record cannot be written.
        CheckpointError: a process of another command runs one of the plans.
        GroupError: a run ended in another way than well or diverged.
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
        with checkpoint.held(store, plan, runtime.lock_wait_s) if runtime.group.leads else nullcontext():
            record = execute(plan, runtime, predicted.get(key), report, folder, (reserved or {}).get(key))
            if runtime.group.leads:
                keep(store, record)
        listen(Event(plan, record=record))
        records.append(record)
        if record.status == "interrupted":
            raise Interrupted
        if record.status not in ("ok", "diverged"):
            raise GroupError(f"{plan.label}: {record.status} on process {runtime.group.rank}: {record.error}")
    return records


def _signal(active: list[Worker], number: int) -> None:
    # Whether one is still there is not asked: a signal may come in the middle of that very question.
    for worker in active:
        if worker.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(worker.process.pid, number)


@contextmanager
def _undisturbed(active: list[Worker]) -> Iterator[None]:
    """Keep a second signal from cutting short what the first one asked for; Ctrl-C has the runs end at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hurry(number: int, frame: FrameType | None) -> None:
        _signal(active, signal.SIGINT)

    ours = [each for each in eviction.SIGNALS if signal.getsignal(each) is eviction.raise_]
    before = {each: signal.signal(each, signal.SIG_IGN) for each in ours}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, hurry)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
