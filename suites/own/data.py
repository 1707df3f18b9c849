"""The rows of own tasks, read by the Datasets library: CSV, TSV, JSON lines, Parquet, or the hub.

Every error is one line that names file, row, column, value and rule. Nothing falls back to another source.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import math
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that the hub client uses

from suites.own.tasks import OwnTask
from suites.text.rows import Loaded, Stamp, hold_out, stamp

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {"keep_default_na": False}),
    # Quotes are text in a TSV file, as in GLUE's.
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}
HELD_OUT = 0.1
HELD_OUT_SEED = 0
MOST_CLASSES = 1000
LONGEST_FIELD = 2**31 - 1
"""Characters: a text may be longer than the csv module's 131,072."""


def loaded(task: OwnTask) -> tuple[OwnTask, Loaded]:
    """Return the task with its classes, and its rows.

    Raises:
        ValueError: files missing or malformed, a label that is none, the hub not reachable.
    """
    return _loaded_at(task, stamp(task.folder / name for name in _files(task).values()))


@lru_cache(maxsize=4)
def _loaded_at(task: OwnTask, versions: Stamp) -> tuple[OwnTask, Loaded]:
    raw, revision, content = _from_hub(task) if task.hub else _from_files(task)
    labels = None if task.regression else task.labels or _classes(task, raw["train"])
    task = task.with_labels(labels)
    splits = {name: _rows(task, name, rows) for name, rows in raw.items()}
    notes = []
    if "validation" not in splits:
        train, held = hold_out(splits["train"], HELD_OUT, HELD_OUT_SEED)
        splits = {"train": train, "validation": held}
        notes = [f"no validation split: {len(held):,} of {len(train) + len(held):,} rows of train are held out for it"]
    digest = hashlib.sha256(f"{task.digest}\n{content}".encode()).hexdigest()
    return task, Loaded(splits, digest, revision, notes, official=False)


def _files(task: OwnTask) -> dict[str, str]:
    """Return split -> name of its file; none for a task of the hub's."""
    named = {"train": task.file.train, "validation": task.file.validation}
    return {split: name for split, name in named.items() if name is not None}


def _from_files(task: OwnTask) -> tuple[dict[str, Dataset], None, str]:
    raw: dict[str, Dataset] = {}
    lines = []
    for split, name in _files(task).items():
        path = task.folder / name
        if not path.is_file():
            raise ValueError(f"task {task.name!r}: {split} file {path}: is not there")
        raw[split] = _read(path)
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()} {split}")
    return raw, None, "\n".join(lines)


def _read(path: Path) -> Dataset:
    if path.suffix not in READERS:
        raise ValueError(f"{path}: must end in {', '.join(READERS)}")
    reader, options = READERS[path.suffix]
    if reader == "csv":
        options = {**options, "features": _as_text(path, options)}
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = datasets.load_dataset(
                reader, data_files=str(path), split="train", cache_dir=folder, keep_in_memory=True, **options
            )
    except (OSError, ValueError, TypeError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{path}: cannot be read as {reader}: {' '.join(str(cause).split())[:200]}") from error
    assert isinstance(found, Dataset)
    return found


def _as_text(path: Path, options: Mapping[str, Any]) -> Features:
    """Return all columns of a CSV file as text: a label "1.0", or a text of digits alone, stays as it stands there.

    Raises:
        ValueError: a header that names no column, or two alike; a row of another width, which the library would shift.
    """
    try:
        text = path.read_bytes().decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error
    quoting = options.get("quoting", csv.QUOTE_MINIMAL)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=options.get("sep", ","), quoting=quoting)
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        return Features(dict.fromkeys(_header(path, lines), Value("string")))
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines.line_num}: cannot be read as csv: {error}") from error
    finally:
        csv.field_size_limit(before)


def _header(path: Path, lines: Any) -> list[str]:
    """Return the columns, after every row was held against them; blank lines are left out, as the library does."""
    header: list[str] = next(lines, [])
    if len(set(header)) != len(header) or "" in header or not header:
        index = "; pandas writes no index with to_csv(..., index=False)" if header[:1] == [""] else ""
        raise ValueError(f"{path}, line 1: header {header}: must name every column, each by a name of its own{index}")
    number = lines.line_num + 1
    for row in lines:
        if len(row) != len(header) and (len(row) > 1 or "".join(row).strip()):
            raise ValueError(f"{path}, line {number}: {len(row)} fields, and the header has {len(header)}")
        number = lines.line_num + 1
    return header


def _from_hub(task: OwnTask) -> tuple[dict[str, Dataset], str, str]:
    file = task.file
    assert file.hub is not None
    revision = file.revision or _hub_commit(file.hub)
    wanted = {"train": file.train_split, "validation": file.validation_split}
    datasets.disable_progress_bars()
    try:
        raw = {
            split: datasets.load_dataset(file.hub, file.hub_config, split=name, revision=revision)
            for split, name in wanted.items()
            if name is not None
        }
    except (OSError, HTTPError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"hub data {file.hub}: could not be loaded: {' '.join(str(error).split())[:200]}") from error
    return raw, revision, f"{file.hub}@{revision}/{file.hub_config}/{wanted}"


def _hub_commit(name: str) -> str:
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name, timeout=20).sha
    except (OSError, HTTPError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"hub data {name}: the hub does not say which commit it stands at ({type(error).__name__}: {reason}); "
            'revision = "..." in the task\'s file names one'
        ) from error
    assert commit is not None
    return commit


def _classes(task: OwnTask, train: Dataset) -> tuple[str, ...]:
    """Return the classes of train: the names that the data set has for them, else what stands there, sorted."""
    _check_columns(task, "train", train)
    feature = train.features[task.label]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    found = {_text(value) for value in train[task.label][:]} - {""}
    if not 2 <= len(found) <= MOST_CLASSES:
        raise ValueError(
            f"task {task.name!r}: column {task.label!r} of train has {len(found)} different values: for classes there "
            f"must be 2 to {MOST_CLASSES}; regression = true takes them for numbers"
        )
    numeric = all(value.removeprefix("-").isdecimal() for value in found)
    return tuple(sorted(found, key=int)) if numeric else tuple(sorted(found))


def _check_columns(task: OwnTask, split: str, rows: Dataset) -> None:
    for column in (*task.columns, task.label):
        if column not in rows.column_names:
            raise ValueError(
                f"task {task.name!r}, {split}: no column {column!r}, found {', '.join(map(str, rows.column_names))}"
            )
    if not len(rows):
        raise ValueError(f"task {task.name!r}, {split}: no rows")


def _rows(task: OwnTask, split: str, rows: Dataset) -> Dataset:
    """Return the rows with columns text (or text1, text2), label and idx."""
    _check_columns(task, split, rows)
    columns: dict[str, list[Any]] = {}
    for name, source in zip(task.text_columns, task.columns, strict=True):
        columns[name] = [_text(value) for value in rows[source][:]]
        empty = next((index for index, text in enumerate(columns[name]) if not text.strip()), None)
        if empty is not None:
            raise ValueError(f"task {task.name!r}, {split}, row {empty + 1}: column {source!r} is empty")
    feature = rows.features[task.label]
    values = rows[task.label][:]
    if isinstance(feature, ClassLabel):
        values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
    where = f"task {task.name!r}, {split}"
    columns["label"] = [_label(task, value, f"{where}, row {index}") for index, value in enumerate(values, 1)]
    columns["idx"] = list(range(len(values)))
    kind = Value("float32") if task.labels is None else ClassLabel(names=list(task.labels))
    features = Features({**dict.fromkeys(task.text_columns, Value("string")), "label": kind, "idx": Value("int32")})
    return Dataset.from_dict(columns, features=features)


def _label(task: OwnTask, value: Any, where: str) -> int | float:
    if value is None:
        raise ValueError(f"{where}: has no label in column {task.label!r}")
    text = _text(value)
    if task.labels is None:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{where}: label {text!r}: must be a number")
        return number
    if text not in task.labels:
        near = difflib.get_close_matches(text, task.labels, n=1, cutoff=0.0)[0]
        shown = ", ".join(task.labels[:12])
        raise ValueError(f"{where}: label {text!r}: allowed are {shown}; nearest: {near!r}")
    return task.labels.index(text)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
