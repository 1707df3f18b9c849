"""GLUE rows from a directory in the official TSV layout, from the hub, or generated; hold-out and caps.

Every error is one line that names the file, the line, the value and the rule. Nothing falls back to another source.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that the hub client uses

from baselines.registry import checked_name
from suites.glue.tasks import GlueTask, get_task, nearest
from suites.text.rows import Loaded, Stamp, stamp

HUB_NAME = "nyu-mll/glue"
# The parquet release. Not resolved at run time, so that a plan names its data before anything is downloaded. The hash
# is the one in the address that the Datasets library records for this repository (hf://datasets/nyu-mll/glue@<hash>/
# mrpc/train-00000-of-00001.parquet), as many public repositories quote it; no other one was found.
HUB_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
SOURCES = ("directory", "hub", "micro")
SCORE_RANGE = (0.0, 5.0)

Columns = dict[str, list[str] | list[int] | list[float]]


def load(task: str, source: str, data_dir: Path | str | None = None, offline: bool = False) -> Loaded:
    """Load the train and evaluated splits of one task from exactly the source named.

    Args:
        task: hub name of the task.
        source: "directory" (needs `data_dir`), "hub" or "micro".
        data_dir: root of the TSV layout; the other sources do not look at it.
        offline: the network must not be used.

    Raises:
        ValueError: unknown task or source; files missing or malformed; hub not reachable, or not allowed.
    """
    row = get_task(task)
    checked_name(source, SOURCES, "data source")
    notes: list[str]
    revision: str | None
    if source == "micro":
        from suites.generated import NOTICE
        from suites.generated import tasks as generated

        splits = _conform(row, generated.load(row.name), "micro")
        return Loaded(splits, digest_of(task, source), None, [NOTICE], official=False)
    if source == "hub":
        splits = _conform(row, _from_hub(row, offline), HUB_NAME)
        notes, digest, revision = [], digest_of(task, source), HUB_REVISION
    else:
        splits, notes, digest = _from_directory(row, data_dir)
        revision = None
    differing = [
        f"{name}: {len(splits[name]):,} of {row.official_rows[name]:,} official rows"
        for name in row.splits
        if len(splits[name]) != row.official_rows[name]
    ]
    return Loaded(splits, digest, revision, differing + notes, official=not differing)


def digest_of(task: str, source: str, data_dir: Path | str | None = None) -> str:
    """sha256 that names a task's content, without parsing it.

    directory: over "sha256 file" lines of the files used. hub: over repository, commit and configuration, where the
    commit stands for the content. micro: over the generated rows.

    Raises:
        ValueError: unknown task or source; a file is missing or cannot be read.
    """
    row = get_task(task)
    checked_name(source, SOURCES, "data source")
    if source == "micro":
        from suites.generated import tasks as generated

        return str(generated.digest(row.name))
    if source == "hub":
        return hashlib.sha256(f"{HUB_NAME}@{HUB_REVISION}/{row.name}".encode()).hexdigest()
    return _combined_digest({path.name: _read(path) for path in _paths(row, data_dir).values()})


def stamp_of(task: str, source: str, data_dir: Path | str | None = None) -> Stamp:
    """Return what tells one version of a task's files from the next; nothing for a source without files.

    Raises:
        ValueError: unknown task; a file is missing.
    """
    return stamp(_paths(get_task(task), data_dir).values()) if source == "directory" else ()


def _from_hub(task: GlueTask, offline: bool) -> Mapping[str, Dataset]:
    where = f"hub data {HUB_NAME}/{task.name} at {HUB_REVISION[:12]}"
    advice = "give official TSV files with --data-dir, or take --profile micro, which needs no data"
    if offline:
        raise ValueError(f"{where}: needs the network, and this run is offline; {advice}")
    try:
        loaded: Mapping[str, Dataset] = datasets.load_dataset(HUB_NAME, task.name, revision=HUB_REVISION)
    except (OSError, datasets.exceptions.DatasetsError, HTTPError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where}: could not be loaded ({type(error).__name__}: {reason}); {advice}") from error
    for split in loaded.values():
        # Without a network the library may serve whatever revision its cache holds.
        for address in split.info.download_checksums or {}:
            if f"{HUB_NAME}@" in address and f"@{HUB_REVISION}/" not in address:
                raise ValueError(f"{where}: the cache served another revision, {address}; empty it or {advice}")
    return loaded


def _conform(task: GlueTask, loaded: Mapping[str, Dataset], origin: str) -> dict[str, Dataset]:
    """The splits in use with exactly the task's columns.

    Raises:
        ValueError: a split or column is missing, a split is empty, or the classes are others.
    """
    splits = {}
    for name in task.splits:
        if name not in loaded:
            raise ValueError(f"{origin}, {task.name}: no split {name!r}, found {', '.join(loaded)}")
        split = loaded[name]
        missing = [column for column in task.columns if column not in split.column_names]
        if missing or not len(split):
            what = f"no column {missing[0]!r}, found {', '.join(split.column_names)}" if missing else "no rows"
            raise ValueError(f"{origin}, {task.name}, {name}: {what}")
        label = split.features["label"]
        if isinstance(label, ClassLabel) and tuple(label.names) != task.labels:
            raise ValueError(f"{origin}, {task.name}, {name}: classes are {label.names}, expected {task.labels}")
        splits[name] = split.select_columns(list(task.columns))
    return splits


def _from_directory(task: GlueTask, data_dir: Path | str | None) -> tuple[dict[str, Dataset], list[str], str]:
    """Splits, notes and digest of a directory in the official layout; each file is read once."""
    paths = _paths(task, data_dir)
    contents = {split: _read(path) for split, path in paths.items()}
    label = Value("float32") if task.labels is None else ClassLabel(names=list(task.labels))
    features = Features({**dict.fromkeys(task.text_columns, Value("string")), "label": label, "idx": Value("int32")})
    splits, notes = {}, []
    for split, path in paths.items():
        columns, broken = parse(task, split, _lines(path, contents[split]), path)
        splits[split] = Dataset.from_dict(columns, features=features)
        if broken:
            notes.append(f"{split}: {broken} broken lines left out, as in the hub's release")
    return splits, notes, _combined_digest({path.name: contents[split] for split, path in paths.items()})


def parse(task: GlueTask, split: str, lines: Sequence[str], path: Path) -> tuple[Columns, int]:
    """Columns of one TSV file, quotes being text, and the number of broken lines left out.

    Raises:
        ValueError: header lacks a column, row of another width, wrong label, no rows.
    """
    layout = task.layout
    header = layout.header or tuple(lines[0].split("\t") if lines else ())
    first = 0 if layout.header else 1
    wanted = (*layout.text, layout.label)
    missing = [name for name in wanted if name not in header]
    if lines and missing:
        raise ValueError(
            f"{path}, line 1: header has no column {missing[0]!r}; found {_shown(', '.join(header))}, "
            f"expected {', '.join(wanted)}"
        )
    if len(lines) <= first:
        raise ValueError(f"{path}: no rows; the {split} split needs at least one")
    rows = [line.split("\t") for line in lines[first:]]
    odd = [index for index, fields in enumerate(rows) if len(fields) != len(header)]
    if odd and not (layout.broken_lines and len(rows) - len(odd) == task.official_rows[split]):
        raise ValueError(
            f"{path}, line {odd[0] + first + 1}: {len(rows[odd[0]])} tab-separated columns, expected {len(header)}: "
            f"{_shown(lines[odd[0] + first])}"
        )
    dropped = set(odd)
    kept = [index for index in range(len(rows)) if index not in dropped]
    columns: Columns = {}
    for name, source in zip(task.text_columns, layout.text, strict=True):
        position = header.index(source)
        columns[name] = [rows[index][position] for index in kept]
    position = header.index(layout.label)
    labels = [_label(layout.words, rows[index][position], path, index + first + 1) for index in kept]
    return {**columns, "label": labels, "idx": kept}, len(odd)


def _label(words: tuple[str, ...] | None, text: str, path: Path, line: int) -> float:
    """Class index of a label word, or the score.

    Raises:
        ValueError: not one of the words; not a number in the range of scores.
    """
    if words is not None:
        if text in words:
            return words.index(text)
        number = int(text) if text.removeprefix("-").isdecimal() and words[0].isdecimal() else None
        near = nearest(text, words) if number is None else words[min(max(number, 0), len(words) - 1)]
        raise ValueError(
            f"{path}, line {line}: wrong label {_shown(text)}; allowed are {', '.join(words)}; nearest is {near!r}"
        )
    low, high = SCORE_RANGE
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if low <= score <= high:
        return score
    near = f"; nearest is {min(max(score, low), high)}" if not math.isnan(score) else ""
    raise ValueError(f"{path}, line {line}: wrong label {_shown(text)}; allowed is a number from {low} to {high}{near}")


def _paths(task: GlueTask, data_dir: Path | str | None) -> dict[str, Path]:
    """Split -> file, all of which exist.

    Raises:
        ValueError: no directory given, or files missing.
    """
    if data_dir is None:
        raise ValueError("data source 'directory': needs --data-dir, the root of GLUE in its official TSV layout")
    folder = Path(data_dir) / task.folder
    names = ", ".join(task.files.values())
    if not Path(data_dir).is_dir():
        raise ValueError(f"{data_dir}: no such directory; {task.name} expects {names} in {folder}")
    paths = {split: folder / name for split, name in task.files.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise ValueError(f"{folder}: no file {', '.join(missing)}; {task.name} expects {names}")
    return paths


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _lines(path: Path, content: bytes) -> list[str]:
    """Lines without their ends; a byte order mark and a missing last line end are fine.

    Raises:
        ValueError: bytes that are not UTF-8.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        value = content[error.start : error.end].hex(" ")
        raise ValueError(
            f"{path}, line {line}, byte {error.start}: not UTF-8: {value}; GLUE files are UTF-8"
        ) from error
    # Only line feeds end a row: str.splitlines would also cut at separators that occur inside texts.
    lines = text.removeprefix("\ufeff").split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _combined_digest(files: Mapping[str, bytes]) -> str:
    listing = "".join(f"{hashlib.sha256(content).hexdigest()} {name}\n" for name, content in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def _shown(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[:width] + "...")
