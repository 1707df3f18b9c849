"""The store: one JSON file a run, and a few files of other kinds beside them, each written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from results.schema import SCHEMA_VERSION, Record, Strict

FINAL: frozenset[str] = frozenset({"ok", "diverged", "out_of_memory"})
SINGLE: frozenset[str] = frozenset(
    {"bench.json", "catalogue.json", "capabilities.json", "search.json", "tolerances.json", "trial.json"}
)
"""Files of another kind, see `read_single`, that may lie among the records of runs."""
TABLE = ".table.json"
"""Ending of the values behind a table that a report has written."""
MEMORY = "memory"
"""Folder of the memory lab below a folder of records; it holds no runs."""
GPU = "gpu"
"""Folder of device checks below a folder of records; it holds no runs."""
MODELS = "models"
"""Folder of saved models below a folder of records."""
TRACKERS = "trackers"
"""Folder below a folder of records for what trackers keep of runs as they go on; some of it is JSON."""
GATE = "gate"
"""Folder of the gate: records of a reference right in it, below it those of one state of the code each."""

Kind = TypeVar("Kind", bound=Strict)


class StoreError(ValueError):
    """A file in the store that is no valid record, or a folder that cannot be used."""


def read_record(path: Path) -> Record:
    """Return the record in `path`.

    Raises:
        StoreError: the file is not UTF-8 JSON of the record schema, or of a version that cannot be read; the text names
            the file, the field and the rule.
    """
    record = read_single(
        path, Record, f"a record of schema version {SCHEMA_VERSION}",
        "; move the file out of the store or run again into another --out folder",
    )  # fmt: skip
    if record.plan.hash() != record.plan_hash:
        raise StoreError(
            f"{path}: plan_hash {record.plan_hash} is not that of its plan ({record.plan.hash()}): "
            "the record was edited or comes from another version of the schema"
        )
    return record


def read_single(path: Path, kind: type[Kind], what: str = "", advice: str = "") -> Kind:
    """Return what the file `path` holds, of one kind; `what` it must be and `advice` go into the error's text.

    Raises:
        StoreError: the file cannot be read, or is not of this kind; the text names the field and the rule.
    """
    try:
        content = path.read_bytes()
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        known = kind.model_fields["schema_version"].default
        found = f"not {what or f'a {kind.__name__.lower()} record'}: {where}: {first['msg']}{advice}"
        raise StoreError(f"{path}: {_other_version(content, known) or found}") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def _other_version(content: bytes, known: int) -> str | None:
    """Return what to do about a file of another schema version, None where that is not what is wrong with it."""
    try:
        version = json.loads(content)["schema_version"]
    except (ValueError, KeyError, TypeError):
        return None
    if type(version) is not int or version == known:
        return None
    if version > known:
        return f"schema version {version} is newer than {known}, the newest that this code reads: update the code"
    return f"schema version {version} is older than {known}, the only one that this code reads: run it again"


def write_record(root: Path, record: Record) -> Path:
    """Write `record` under `root` atomically (temporary file, fsync, rename) and return its path.

    A record of the same plan is replaced; a reader or a killed writer never leaves half a file under the final name.
    """
    return write_atomically(root / f"{record.plan.label}.json", as_text(record).encode())


def as_text(record: Strict, by_element: bool = False) -> str:
    """Return the record as JSON with a line a part, and with `by_element` a line an element of a list of tables."""

    def text(part: object) -> str:
        if by_element and isinstance(part, list) and part and all(isinstance(element, dict) for element in part):
            return "[\n" + ",\n".join(json.dumps(element) for element in part) + "\n]"
        return json.dumps(part)

    parts = json.loads(record.model_dump_json())
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {text(part)}" for name, part in parts.items()) + "\n}\n"


def write_single(path: Path, record: Strict) -> Path:
    """Write the record to `path`, whole or not at all, a line a part and a line an element, and return the path.

    Raises:
        StoreError: the folder cannot be written.
    """
    return write_atomically(path, as_text(record, by_element=True).encode())


def write_atomically(target: Path, content: bytes) -> Path:
    """Write `content` to `target` through a temporary file in the same folder, and return `target`.

    Raises:
        StoreError: the folder cannot be written (read-only, full, a file in its way); nothing is left behind.
    """
    scratch: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, target)
    except OSError as error:
        raise StoreError(f"{target}: cannot be written: {error.strerror}; choose another folder with --out") from error
    finally:
        # Gone already where the rename came through; left over after an error or Ctrl-C.
        if scratch is not None and os.path.exists(scratch):
            os.unlink(scratch)
    return target


def check_writable(root: Path) -> None:
    """Raise StoreError now, before any work, if a record could not be written under `root`."""
    probe = write_atomically(root / ".write-probe", b"ok\n")
    probe.unlink()


def record_paths(roots: Iterable[Path]) -> Iterator[Path]:
    """Yield every `*.json` below `roots` (files are yielded as they are), sorted.

    Left out are hidden files and what others put there: `SINGLE` files, tables, the folders of memory lab, device
    checks, saved models and trackers, and the gate's runs of one state of the code, which repeat each other's plans.
    Each is read where its folder is a root.
    """
    for root in roots:
        if root.is_file():
            yield root
        else:
            found = sorted(path for path in root.rglob("*.json") if not path.name.startswith("."))
            yield from (path for path in found if not _of_another_command(path.relative_to(root)))


def _of_another_command(path: Path) -> bool:
    place, *below = path.parts
    alone = path.name in SINGLE or path.name.endswith(TABLE)
    return alone or (place in (MEMORY, GPU, MODELS, TRACKERS) and bool(below)) or (place == GATE and len(below) > 1)


def read_records(roots: Iterable[Path]) -> list[Record]:
    """Return all records below `roots`.

    Raises:
        StoreError: any of the files is not a valid record, or two files hold the same plan.
    """
    seen: dict[str, Path] = {}
    records = []
    for path in record_paths(roots):
        record = read_record(path)
        if record.plan_hash in seen:
            raise StoreError(f"{path}: same plan as {seen[record.plan_hash]}: keep one of the two")
        seen[record.plan_hash] = path
        records.append(record)
    return records
