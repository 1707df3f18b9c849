"""Records of other schema versions are refused by name, with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from results.capabilities import CapabilityMatrix
from results.schema import SCHEMA_VERSION, Record
from results.store import StoreError, as_text, read_record, read_single

Make = Callable[..., Record]


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (SCHEMA_VERSION + 1, rf"new\.json: schema version {SCHEMA_VERSION + 1} is newer than 1.*update the code"),
        (SCHEMA_VERSION - 1, rf"new\.json: schema version {SCHEMA_VERSION - 1} is older than 1.*run it again"),
        (None, r"new\.json: not a record of schema version 1: schema_version: "),
        ("1", r"new\.json: not a record of schema version 1: schema_version: "),
    ],
)
def test_another_version_is_refused_by_name(version: object, says: str, tmp_path: Path, make_record: Make) -> None:
    path = tmp_path / "new.json"
    path.write_text(json.dumps({**json.loads(as_text(make_record())), "schema_version": version, "a_new_field": 1}))
    with pytest.raises(StoreError, match=says):
        read_record(path)


def test_files_of_other_kinds_have_versions_too(tmp_path: Path) -> None:
    path = tmp_path / "capabilities.json"
    path.write_text('{"schema_version": 2}')
    with pytest.raises(StoreError, match="schema version 2 is newer than 1"):
        read_single(path, CapabilityMatrix)


def test_a_broken_current_file_is_still_named_by_its_field(tmp_path: Path, make_record: Make) -> None:
    path = tmp_path / "bad.json"
    path.write_text(as_text(make_record()).replace('"status": "ok"', '"status": "fine"'))
    with pytest.raises(StoreError, match=r"bad\.json: not a record of schema version .*status"):
        read_record(path)
