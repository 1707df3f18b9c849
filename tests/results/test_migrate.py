"""Records of other schema versions: older ones step by step, newer ones refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results import migrate
from results.migrate import VersionError, migrated
from results.schema import SCHEMA_VERSION, Record
from results.store import StoreError, as_text, read_record

Make = Callable[..., Record]


def old_seed(table: dict[str, Any]) -> dict[str, Any]:
    """Undo an imagined version in which the plan's seed stood at the top."""
    plan = {**table["plan"], "seed": table["seed"]}
    return {**{name: part for name, part in table.items() if name != "seed"}, "plan": plan}


def older(record: Record) -> dict[str, Any]:
    """Return the record as that imagined version would have written it."""
    table = json.loads(as_text(record))
    seed = table["plan"].pop("seed")
    return {**table, "seed": seed, "schema_version": SCHEMA_VERSION - 1}


def test_a_current_record_is_left_alone() -> None:
    table = {"schema_version": SCHEMA_VERSION, "x": 1}
    assert migrated(table) is table


def test_steps_are_taken_in_order_and_leave_the_input_alone() -> None:
    table = {"schema_version": 1, "x": 1}
    steps = {1: lambda t: {**t, "x": t["x"] + 1}, 2: lambda t: {**t, "x": t["x"] * 10}}
    assert migrated(table, steps, 3) == {"schema_version": 3, "x": 20}
    assert table == {"schema_version": 1, "x": 1}


def test_a_missing_step_names_both_versions() -> None:
    with pytest.raises(VersionError, match=r"version 1 is older than 3 .*known from: 2"):
        migrated({"schema_version": 1}, {2: dict}, 3)


@pytest.mark.parametrize("version", [None, "1", True, -1, 1.0])
def test_a_version_that_is_none_is_refused(version: object) -> None:
    with pytest.raises(VersionError, match="must be a whole number"):
        migrated({"schema_version": version}, {}, 1)


def test_a_newer_file_is_refused_naming_both_versions(tmp_path: Path, make_record: Make) -> None:
    table = {**json.loads(as_text(make_record())), "schema_version": SCHEMA_VERSION + 1, "a_new_field": 1}
    path = tmp_path / "new.json"
    path.write_text(json.dumps(table))
    want = rf"new\.json: schema version {SCHEMA_VERSION + 1} is newer than {SCHEMA_VERSION}.*update the code"
    with pytest.raises(StoreError, match=want):
        read_record(path)


def test_an_older_file_is_read_through_its_step(
    tmp_path: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record()
    path = tmp_path / "old.json"
    path.write_text(json.dumps(older(record)))
    with pytest.raises(StoreError, match="has no migration"):
        read_record(path)
    monkeypatch.setitem(migrate.MIGRATIONS, SCHEMA_VERSION - 1, old_seed)
    assert read_record(path) == record


def test_a_broken_current_file_is_still_named_by_its_field(tmp_path: Path, make_record: Make) -> None:
    path = tmp_path / "bad.json"
    path.write_text(as_text(make_record()).replace('"status": "ok"', '"status": "fine"'))
    with pytest.raises(StoreError, match=r"bad\.json: not a record of schema version .*status"):
        read_record(path)
