"""Records that are one file of a kind of their own, beside the records of runs: read strictly, written whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from results.schema import Strict
from results.store import StoreError, write_atomically

Kind = TypeVar("Kind", bound=Strict)


def read_single(path: Path, kind: type[Kind]) -> Kind:
    """Return the record in `path`.

    Raises:
        StoreError: the file cannot be read, or is not of this kind; the text names the field and the rule.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StoreError(f"{path}: not a {kind.__name__.lower()} record: {where}: {first['msg']}") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def write_single(path: Path, record: Strict) -> Path:
    """Write the record to `path`, whole or not at all, a line a part and a line an element, and return the path.

    Raises:
        StoreError: the folder cannot be written.
    """
    parts = json.loads(record.model_dump_json())
    lines = [f"{json.dumps(name)}: {_lines(part)}" for name, part in parts.items()]
    return write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _lines(part: object) -> str:
    if isinstance(part, list) and part and all(isinstance(element, dict) for element in part):
        return "[\n" + ",\n".join(json.dumps(element) for element in part) + "\n]"
    return json.dumps(part)
