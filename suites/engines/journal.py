"""What was handed to an engine that outlives the command: a file a run in the store, so that nothing goes out twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from results.schema import Plan
from results.store import write_atomically
from suites.run.checkpoint import LOCKS
from suites.run.worker import record_path

FOLDER = ".handed"


@dataclass(frozen=True)
class Entry:
    """One hand-over: `earlier` is the digest of the record that the store held before it; None: it held none."""

    engine: str
    handle: str
    earlier: str | None


def entry(store: Path, plan: Plan) -> Entry | None:
    """Return what is known of a run that was handed over; None where nothing is.

    Raises:
        ValueError: a file that is no entry.
    """
    path = _path(store, plan)
    try:
        return Entry(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: says nothing of a run that was handed over: remove it if none goes on") from error


def any_entry(store: Path) -> bool:
    """Whether any run of the store was handed over and is not known to have ended."""
    folder = store / FOLDER
    return folder.is_dir() and any(folder.iterdir())


def note(store: Path, plan: Plan, found: Entry) -> None:
    """Write that a run was handed over.

    Raises:
        StoreError: the store cannot be written.
    """
    write_atomically(_path(store, plan), json.dumps(asdict(found)).encode())


def drop(store: Path, plan: Plan) -> None:
    """Forget a run."""
    _path(store, plan).unlink(missing_ok=True)


def digest(store: Path, plan: Plan) -> str | None:
    """Return what tells one record of a run from the next, the same on every machine; None where there is none."""
    try:
        return hashlib.sha256(record_path(store, plan).read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Keep a second command from handing out the runs of the same store.

    Raises:
        ValueError: another one does it now.
    """
    (store / LOCKS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(store / LOCKS / "supervisor", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{store}: another command hands out runs of this store now; wait for it, or choose another folder with "
            "--out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _path(store: Path, plan: Plan) -> Path:
    # No ending: readers of the store take every .json for a record.
    return store / FOLDER / plan.hash()
