"""Checkpoints: the whole state of a run, written whole or not at all; the newest whole one is used.

One file a step, `step-<number>-<digest>.pt`; the digest is the first 16 hex digits of the file's sha256, so that a
truncated or damaged one is told from a whole one. They load with `weights_only=True`: tensors, numbers and text only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

from results.differences import plan_differences
from results.schema import Plan

FORMAT = 1
KEPT = 2
FOLDER = "checkpoints"
LOCKS = ".locks"
PARTIAL = ".partial"
LOCK_WAIT_S = 15.0
State = dict[str, Any]


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or does not belong to the plan."""


def folder_of(store: Path, plan: Plan) -> Path:
    """Return where the checkpoints of a run stand."""
    return store / FOLDER / plan.label


def save(folder: Path, plan: Plan, step: int, state: Mapping[str, Any]) -> Path:
    """Write the state after `step` atomically, drop all but the newest `KEPT` checkpoints, and return the file.

    Raises:
        CheckpointError: it cannot be written; earlier checkpoints stand as they were and nothing is left half-written.
    """
    scratch: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder, step)
        handle, scratch = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            torch.save({"format": FORMAT, "plan": plan.model_dump_json(), "step": step, **state}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        target = folder / f"step-{step:08d}-{_digest(Path(scratch))}.pt"
        os.replace(scratch, target)
        _sync_folder(folder)
    # torch's writer turns an error of the file below it into a RuntimeError.
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise CheckpointError(
            f"checkpoint of step {step} cannot be written to {folder}: {reason}; the earlier ones are whole: free "
            "space there, and the same command goes on from the newest"
        ) from error
    finally:
        if scratch is not None and os.path.exists(scratch):
            os.unlink(scratch)
    for old in _files(folder)[:-KEPT]:
        old.unlink()
        shutil.rmtree(parts_folder(folder, _step_of(old)), ignore_errors=True)
    return target


def _sweep(folder: Path, step: int) -> None:
    """Remove what a killed writer left of other steps than the one in hand: whole checkpoints stay."""
    whole = {parts_folder(folder, each) for each in (step, *map(_step_of, _files(folder)))}
    for path in folder.iterdir():
        if path.suffix == ".tmp":
            path.unlink(missing_ok=True)
        elif path.suffix in (".parts", PARTIAL) and path not in whole:
            shutil.rmtree(path, ignore_errors=True)


def parts_folder(folder: Path, step: int) -> Path:
    """Return where the tensors of a sharded run's checkpoint stand."""
    return folder / f"step-{step:08d}.parts"


def digests(folder: Path) -> dict[str, str]:
    """Return name -> digest of the files in a folder."""
    return {path.name: _digest(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def newest(folder: Path, plan: Plan) -> State | None:
    """Return the newest whole checkpoint of `plan` in `folder`, or None; a damaged one is passed over with a warning.

    Raises:
        CheckpointError: it is of another plan; the text names the fields that differ.
    """
    for path in reversed(_files(folder)):
        state = _read(path)
        if state is None:
            continue
        parts = state.get("parts")
        if parts is not None and digests(parts_folder(folder, state["step"])) != parts:
            warnings.warn(f"{path}: a part of it is missing or damaged, passed over", stacklevel=2)
            continue
        _check_plan(path, Plan.model_validate_json(state["plan"]), plan)
        return state
    return None


def at_step(folder: Path, step: int) -> State:
    """Return the checkpoint of a step that `newest` has found whole, on another process maybe."""
    (path,) = folder.glob(f"step-{step:08d}-*.pt")
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


def remove(folder: Path) -> None:
    """Remove a run's checkpoints, and the folder above it with the last one."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.parent.rmdir()
    except OSError:
        return


@contextmanager
def held(store: Path, plan: Plan, wait_s: float | None = None) -> Iterator[None]:
    """Hold a run against a second process of the same run, until this process ends or the context does.

    Raises:
        CheckpointError: another process holds it, for longer than one that was just killed would: `wait_s` seconds,
            `LOCK_WAIT_S` unless said.
    """
    folder = store / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    # The system frees it with the process, however that ends.
    lock = FileLock(folder / plan.hash(), timeout=LOCK_WAIT_S if wait_s is None else wait_s)
    try:
        lock.acquire()
    except Timeout:
        raise CheckpointError(f"{store}: another process runs this plan ({plan.label})") from None
    try:
        yield
    finally:
        lock.release()


def is_held(store: Path, plan: Plan) -> bool:
    """Whether a process runs this plan now, as far as the file system of the store says."""
    path = store / LOCKS / plan.hash()
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def newest_step(store: Path, plan: Plan) -> int | None:
    """Return the step of a run's newest checkpoint by its name; None where there is none."""
    files = _files(folder_of(store, plan))
    return _step_of(files[-1]) if files else None


def unfinished(store: Path, plans: Sequence[Plan]) -> int:
    """Return how many of `plans` have a checkpoint to go on from."""
    return sum(bool(_files(folder_of(store, plan))) for plan in plans)


def check_unchanged(store: Path, plans: Sequence[Plan]) -> None:
    """Refuse plans that differ from a run that was cut off in `store` and could go on.

    Two plans are of the same run if suite, profile, task, method, seed, purpose and variant are the same.

    Raises:
        CheckpointError: naming the fields that differ and what can be done.
    """
    wanted: dict[tuple[object, ...], list[Plan]] = {}
    for plan in plans:
        wanted.setdefault(_identity(plan), []).append(plan)
    root = store / FOLDER
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        plan_of = _plan_in(folder)
        if plan_of is None:
            continue
        rivals = wanted.get(_identity(plan_of), [])
        if rivals and all(plan.hash() != plan_of.hash() for plan in rivals):
            raise CheckpointError(
                f"an unfinished run stands in {folder} with other settings: {differences(plan_of, rivals[0])}; give "
                "its settings to go on with it, or --fresh to leave it and start anew"
            )


def differences(before: Plan, after: Plan) -> str:
    """Return the fields in which two plans differ, as "name before -> after", comma-joined."""
    return ", ".join(f"{name} {old} -> {new}" for name, old, new in sorted(plan_differences(before, after)))


def _identity(plan: Plan) -> tuple[object, ...]:
    return plan.suite, plan.profile, plan.task, plan.method, plan.seed, plan.purpose, plan.variant


def _plan_in(folder: Path) -> Plan | None:
    for path in reversed(_files(folder)):
        state = _read(path, mapped=True)
        if state is not None:
            return Plan.model_validate_json(state["plan"])
    return None


def _read(path: Path, mapped: bool = False) -> State | None:
    """Return a whole checkpoint, or None with a warning. `mapped` leaves its tensors in the file."""
    wanted = path.stem.rpartition("-")[2]
    if _digest(path) != wanted:
        warnings.warn(f"{path}: truncated or damaged, passed over", stacklevel=2)
        return None
    state: State = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    try:
        if state.get("format") != FORMAT:
            raise ValueError(f"format {state.get('format')}, this version reads {FORMAT}")
        Plan.model_validate_json(state["plan"])
    except (ValidationError, ValueError, KeyError) as error:
        warnings.warn(f"{path}: not a checkpoint of this version ({error}), passed over", stacklevel=2)
        return None
    return state


def _check_plan(path: Path, found: Plan, plan: Plan) -> None:
    if found.hash() != plan.hash():
        raise CheckpointError(f"{path}: belongs to another plan; what differs: {differences(found, plan)}")


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"))


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
