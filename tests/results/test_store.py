"""The store: records are written whole or not at all, and what is no valid record is named, with file and rule."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results import store
from results.schema import Record
from results.store import (
    FINAL,
    StoreError,
    check_writable,
    read_record,
    read_records,
    record_paths,
    write_atomically,
    write_record,
)

Make = Callable[..., Record]


def everything(folder: Path) -> list[str]:
    """Return all names below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_round_trip(tmp_path: Path, make_record: Make) -> None:
    record = make_record()
    path = write_record(tmp_path / "deep" / "er", record)
    assert path == tmp_path / "deep" / "er" / f"{record.plan.label}.json"
    assert read_record(path) == record
    assert read_records([tmp_path]) == [record]
    assert everything(tmp_path / "deep" / "er") == [path.name]
    assert path.read_text().endswith("}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_record_of_the_same_plan_is_replaced(tmp_path: Path, make_record: Make) -> None:
    write_record(tmp_path, make_record({"status": "interrupted"}))
    second = make_record()
    write_record(tmp_path, second)
    assert read_records([tmp_path]) == [second]


@pytest.mark.parametrize("status", ["ok", "diverged", "out_of_memory", "failed", "interrupted"])
def test_every_status_is_kept_apart(status: str, tmp_path: Path, make_record: Make) -> None:
    parts = dict.fromkeys(("data", "engagement", "memory", "timing", "main_metric"))
    record = make_record({**parts, "evaluations": [], "curve": [], "status": status, "error": "line\nline"})
    assert read_record(write_record(tmp_path, record)) == record
    assert (status in FINAL) == (status not in ("failed", "interrupted"))


@pytest.mark.parametrize("function", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), StoreError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_write_cut_off_leaves_the_old_record_and_nothing_else(
    function: str,
    error: BaseException,
    raised: type[BaseException],
    tmp_path: Path,
    make_record: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = make_record({"status": "failed"})
    path = write_record(tmp_path, old)

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store.os, function, fail)
        with pytest.raises(raised) as caught:
            write_record(tmp_path, make_record())
        with pytest.raises(raised):
            write_record(tmp_path / "new", make_record())
    if raised is StoreError:
        assert str(caught.value) == f"{path}: cannot be written: {error.strerror}; choose another folder with --out"  # type: ignore[attr-defined]
    assert read_record(path) == old
    assert everything(tmp_path) == sorted([path.name, "new"])


def test_a_reader_never_sees_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    target.write_bytes(b"old")
    seen = []
    true_replace = os.replace

    def watched(source: str, destination: Path) -> None:
        seen.append(
            (target.read_bytes(), Path(source).read_bytes(), Path(source).parent, list(record_paths([tmp_path])))
        )
        true_replace(source, destination)

    monkeypatch.setattr(store.os, "replace", watched)
    write_atomically(target, b"new" * 10000)
    assert seen == [(b"old", b"new" * 10000, tmp_path, [target])]
    assert target.read_bytes() == b"new" * 10000


def test_a_file_in_the_folders_place(tmp_path: Path, make_record: Make) -> None:
    """Stands for a read-only folder too, which root could write into."""
    blocked = tmp_path / "out"
    blocked.write_text("mine")
    for call in (lambda: check_writable(blocked), lambda: write_record(blocked / "sub", make_record())):
        with pytest.raises(StoreError, match="cannot be written: .*choose another folder with --out") as raised:
            call()
        assert "\n" not in str(raised.value)
        assert str(blocked) in str(raised.value)
    assert blocked.read_text() == "mine"
    assert everything(tmp_path) == ["out"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StoreError, match="cannot be written: Permission denied"):
            check_writable(tmp_path / "out")
    finally:
        tmp_path.chmod(0o755)


def test_check_writable_leaves_nothing_in_the_folder(tmp_path: Path) -> None:
    check_writable(tmp_path / "out")
    assert everything(tmp_path) == ["out"]


def _edit(text: str, **changes: Any) -> bytes:
    return json.dumps({**json.loads(text), **changes}).encode()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda text: b"", "the file: Invalid JSON"),
        (lambda text: text[: len(text) // 2].encode(), "the file: Invalid JSON"),
        (lambda text: text.encode()[:-3] + b"\xff\xfe}", "the file: Invalid JSON"),
        (lambda text: text.encode("utf-16"), "the file: Invalid JSON"),
        (lambda text: b"[1, 2]", "the file: Input should be an object"),
        (lambda text: b'{"accuracy": 0.9}', "plan: Field required"),
        (lambda text: _edit(text, surplus=1), "surplus: Extra inputs are not permitted"),
        (lambda text: _edit(text, status="cancelled"), "status: Input should be 'ok', 'diverged'"),
        (lambda text: _edit(text, started_at=None), "started_at: Input should be a valid string"),
    ],
)
def test_what_is_no_record_is_named(
    change: Callable[[str], bytes], rule: str, tmp_path: Path, make_record: Make
) -> None:
    path = write_record(tmp_path, make_record())
    path.write_bytes(change(path.read_text()))
    kept = path.read_bytes()
    for call in (lambda: read_record(path), lambda: read_records([tmp_path])):
        with pytest.raises(StoreError) as raised:
            call()
        text = str(raised.value)
        assert text.startswith(f"{path}: not a record of schema version 1: {rule}")
        assert "\n" not in text
    assert path.read_bytes() == kept


@pytest.mark.parametrize("field", ["seed", "task", "profile"])
def test_an_edited_plan_is_found_out(field: str, tmp_path: Path, make_record: Make) -> None:
    record = make_record()
    path = write_record(tmp_path, record)
    table = json.loads(path.read_text())
    table["plan"][field] = 7 if field == "seed" else "other"
    path.write_text(json.dumps(table))
    with pytest.raises(StoreError, match=rf"plan_hash {record.plan_hash} is not that of its plan .*edited") as raised:
        read_record(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_an_edited_hash_is_found_out(tmp_path: Path, make_record: Make) -> None:
    path = write_record(tmp_path, make_record())
    path.write_bytes(_edit(path.read_text(), plan_hash="0" * 12))
    with pytest.raises(StoreError, match="plan_hash 000000000000 is not that of its plan"):
        read_record(path)


def test_two_records_of_one_plan(tmp_path: Path, make_record: Make) -> None:
    first = write_record(tmp_path / "a", make_record())
    second = write_record(tmp_path / "b", make_record({"status": "failed"}))
    with pytest.raises(StoreError) as raised:
        read_records([tmp_path])
    assert str(raised.value) == f"{second}: same plan as {first}: keep one of the two"


def test_a_folder_named_like_a_record(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(StoreError, match=r"x\.json: cannot be read: Is a directory"):
        read_records([tmp_path])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.json: cannot be read: No such file"):
        read_record(tmp_path / "none.json")


def test_paths_are_sorted_and_hidden_files_left_out(tmp_path: Path, make_record: Make) -> None:
    names = ["b/z.json", "a.json", ".hidden.json", "b/.x.json.ab.tmp", "notes.md"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    single = tmp_path / "notes.md"
    assert list(record_paths([tmp_path, single])) == [tmp_path / "a.json", tmp_path / "b" / "z.json", single]


def test_what_other_commands_leave_in_the_folder_is_not_in_the_way(tmp_path: Path, make_record: Make) -> None:
    # `nox -s memory`, then `nox -s regression` before and after a change of the code, then `nox -s glue_rank8`.
    record = make_record()
    path = write_record(tmp_path, record)
    write_atomically(tmp_path / "memory" / "60m.json", b'{"schema_version": 1, "cells": []}\n')
    runs = [write_record(tmp_path / "gate" / state, record) for state in ("0123456789ab", "ba9876543210")]
    assert read_records([tmp_path]) == [record]
    assert list(record_paths([tmp_path])) == [path]
    assert list(record_paths([runs[0].parent])) == runs[:1]
    # What W&B keeps of a run that it follows.
    write_atomically(tmp_path / "trackers" / "wandb" / "run-1" / "files" / "wandb-summary.json", b'{"_step": 3}\n')
    assert read_records([tmp_path]) == [record]
    path.unlink()
    reference = write_record(tmp_path / "gate", record)
    assert list(record_paths([tmp_path])) == [reference]


def test_a_foreign_file_elsewhere_is_still_named(tmp_path: Path) -> None:
    write_atomically(tmp_path / "other" / "60m.json", b'{"schema_version": 1, "cells": []}\n')
    with pytest.raises(StoreError, match="60m.json: not a record"):
        read_records([tmp_path])


def test_records_of_several_folders_come_in_order(tmp_path: Path, make_record: Make) -> None:
    made = [make_record(seed=seed) for seed in (3, 1, 2)]
    write_record(tmp_path / "b", made[0])
    write_record(tmp_path / "a", made[1])
    write_record(tmp_path / "c", made[2])
    assert read_records([tmp_path / "c", tmp_path / "a", tmp_path / "b"]) == [made[2], made[1], made[0]]
