"""The other side: on a node, one run through the suite's own launcher, into the store if the node shares it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from results.schema import Record
from results.store import StoreError
from suites.engines.engine import Cause, Gone, Task
from suites.measure.environment import ROOT, code_digest, code_version
from suites.run.launch import launch
from suites.run.worker import Event, has_ended, record_path

LOCK_WAIT_S = 120.0
"""A node that died holds a run's lock until its network file system's lease is over: 90 s is usual."""
NONCE = ".nonce"
Tell = Callable[[int, float | None, str | None], None]
"""Is told a run's step, loss and device."""


class Refusal(ValueError):
    """A node that cannot take a run, whatever is tried."""


def check_code(expected: str, node: str) -> None:
    """Raise Refusal unless this node's code is that of the command."""
    found = code_digest()
    if found != expected:
        raise Refusal(
            f"node {node}: its code is another ({found}, the command's is {expected}): check out the same commit there"
        )


def check_commit(expected: str | None, node: str) -> None:
    """Raise Refusal where the command's code has a commit and this node's is not known: its records would lack it."""
    if expected is not None and code_version(ROOT)[0] is None:
        raise Refusal(
            f"node {node}: its copy of the code says no commit, and every record would lack it: clone the repository "
            "there with .git (a working_dir of Ray is copied without)"
        )


def shares(store: Path, nonce: str) -> bool:
    """Whether `store` on this node is the folder that the command put `nonce` into."""
    try:
        return (store / NONCE).read_text() == nonce
    except OSError:
        return False


def run_task(task: Task, tell: Tell) -> Gone:
    """Run a task here and return how it went; its record stands in the store, or comes with it where it is not shared.

    Raises:
        Refusal: the store cannot be used, or what the run should leave in it beside its record would be lost.
    """
    if task.runtime.offline:
        from suites.offline import go_offline

        go_offline()
    shared = shares(task.store, task.nonce)
    beside = task.runtime.beside
    if not shared and (beside.model or beside.trackers):
        raise Refusal(f"{task.store} is not shared with this node: saved models and trackers would be lost there")
    with _folder(task.store if shared else None) as folder:
        # A job that was queued long may come when all is done.
        if has_ended(folder, task.plan):
            return Gone("it has a record already", "ended")
        record = _launched(task, folder, tell)
        shares_device, shares_node = 0 < task.resources.gpus < 1, task.runtime.workers > 1 and not task.resources.gpus
        if record.status == "out_of_memory" and (shares_device or shares_node):
            record_path(folder, task.plan).unlink()
            why = record.error or "memory ran out"
            return Gone(why, "crowded") if shares_device else Gone(f"beside other runs: {why}", "lost")
        # One that was told to make room has not ended: its state is saved, and it goes on elsewhere.
        cause: Cause = "lost" if record.status == "interrupted" else "ended"
        return Gone(record.error or record.status, cause, None if shared else record)


def _launched(task: Task, folder: Path, tell: Tell) -> Record:
    key = task.plan.hash()
    runtime = replace(task.runtime, lock_wait_s=LOCK_WAIT_S)
    reserved = {} if task.reserved is None else {key: task.reserved}

    def listen(event: Event) -> None:
        if event.record is None:
            tell(event.step, event.loss, event.device)

    try:
        (record,) = launch([task.plan], runtime, folder, {key: task.predicted}, listen, reserved)
    except StoreError as error:
        raise Refusal(str(error)) from error
    return record


@contextmanager
def _folder(shared: Path | None) -> Iterator[Path]:
    if shared is not None:
        yield shared
        return
    with tempfile.TemporaryDirectory(prefix="gnlorp-") as folder:
        yield Path(folder)
