"""Questions with answers: JSON lines in a folder, data sets of the hub, or generated word problems.

A row has `question` and `answer` (worked out in words, the number after `####`, as GSM8K's), or `question`, `choices`
and `label` (the right one's place from 0, its letter, or its text). Every error is one line that names the file, the
line and the rule.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that the hub client uses

from suites.generated import NOTICE, problems
from suites.generated.problems import Problem

SPLITS = {"train": ("train.jsonl",), "validation": ("validation.jsonl", "test.jsonl", "dev.jsonl")}
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Hub:
    """A data set of the hub; `split`: what its evaluated split is called there."""

    name: str
    config: str
    split: str


@dataclass(frozen=True)
class Kind:
    """How a task is asked: `choices` has some to choose from; `micro`: the generated problems' name for it."""

    choices: bool
    micro: str
    hub: Hub


@dataclass(frozen=True)
class Questions:
    """What was loaded: rows to train on and to be scored on, what names them, and what is to be known of them."""

    train: tuple[Problem, ...]
    validation: tuple[Problem, ...]
    digest: str
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=4)
def load(kind: Kind, source: str, data_dir: Path | None, revision: str | None) -> Questions:
    """Return the questions of a source: "micro", "directory" (needs `data_dir`) or "hub" (at `revision`).

    Raises:
        ValueError: files missing or malformed; the hub not reachable.
    """
    if source == "micro":
        train, validation = (problems.rows(kind.micro, split) for split in ("train", "validation"))
        return Questions(train, validation, problems.digest(kind.micro), (NOTICE,))
    if source == "hub":
        assert revision is not None
        return _from_hub(kind, revision)
    paths = files(data_dir)
    train, validation = (tuple(read(paths[split], kind.choices)) for split in ("train", "validation"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()} {split}\n" for split, path in paths.items()]
    known = {row.question for row in validation}
    apart = tuple(row for row in train if row.question not in known)
    dropped = len(train) - len(apart)
    if not apart:
        raise ValueError(f"{paths['train']}: all of its {dropped} questions stand in {paths['validation'].name} too")
    notes = (f"{dropped} train questions left out, since they stand in validation",) if dropped else ()
    return Questions(apart, validation, hashlib.sha256("".join(lines).encode()).hexdigest(), notes)


def held_out(rows: tuple[Problem, ...]) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Return train rows without every `HELD_OUT_EVERY`-th, and those."""
    last = HELD_OUT_EVERY - 1
    kept = tuple(row for index, row in enumerate(rows) if index % HELD_OUT_EVERY != last)
    return kept, rows[last::HELD_OUT_EVERY]


def files(data_dir: Path | None) -> dict[str, Path]:
    """Return the file of each split.

    Raises:
        ValueError: no folder given, none there, or a split without a file.
    """
    if data_dir is None:
        raise ValueError("source 'directory': needs a folder of JSON lines, given with --data-dir")
    if not data_dir.is_dir():
        raise ValueError(f"data folder {data_dir}: is not there")
    found = {}
    for split, names in SPLITS.items():
        path = next((data_dir / name for name in names if (data_dir / name).is_file()), None)
        if path is None:
            raise ValueError(f"data folder {data_dir}: has no file for {split}: one of {', '.join(names)}")
        found[split] = path
    return found


def read(path: Path, choices: bool) -> Iterator[Problem]:
    """Yield the rows of a file of JSON lines; a byte order mark and blank lines at its end are fine.

    Raises:
        ValueError: not UTF-8, no JSON, or a row without what is needed; names file and line.
    """
    number = 0
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip().split(b"\n"), start=1):
        where = f"{path}: line {number}"
        try:
            row: Any = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}, byte {error.start + 1}: not UTF-8") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{where}: no JSON that can be read: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: is no object")
        yield problem(row, choices, where)


def problem(row: dict[str, Any], choices: bool, where: str) -> Problem:
    """Return a row as a problem.

    Raises:
        ValueError: a field is missing or of another kind; `where` begins the text.
    """
    question = _text(row, "question", where)
    if not choices:
        return Problem(question, _text(row, "answer", where))
    given = row.get("choices")
    # Some data sets of the hub hold the texts and their letters side by side.
    letters = list(map(str, given["label"])) if isinstance(given, dict) and "label" in given else None
    texts = given.get("text") if isinstance(given, dict) else given
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(each, str) and each for each in texts):
        raise ValueError(f"{where}: choices {given!r}: must be a list of at least two texts")
    label = _label(row.get("label", row.get("answerKey")), texts, letters, where)
    return Problem(question, texts[label], tuple(texts), label)


def _label(value: Any, texts: list[str], letters: list[str] | None, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
        return value
    names = letters or [chr(ord("A") + index) for index in range(len(texts))]
    for known in (names, texts):
        if value in known:
            return known.index(value)
    raise ValueError(f"{where}: label {value!r}: must be 0 to {len(texts) - 1}, one of {', '.join(names)}, or a choice")


def _text(row: dict[str, Any], name: str, where: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{where}: has no {name!r} that is a text; the fields are {', '.join(map(str, row)) or 'none'}"
        )
    return text.strip()


def hub_commit(kind: Kind, offline: bool) -> str:
    """Return the commit that the data set's main branch stands at.

    Raises:
        ValueError: offline, or the hub does not answer.
    """
    name = kind.hub.name
    if offline:
        raise ValueError(f"{name} needs the network, which --offline forbids; give a folder with --data-dir")
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name, timeout=20).sha
    except (OSError, HTTPError, ValueError) as error:
        raise ValueError(_unreachable(name, error)) from error
    assert commit is not None
    return commit


def _from_hub(kind: Kind, revision: str) -> Questions:
    import datasets

    hub = kind.hub
    try:
        train, validation = (
            datasets.load_dataset(hub.name, hub.config, split=split, revision=revision)
            for split in ("train", hub.split)
        )
    except (OSError, HTTPError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(_unreachable(hub.name, error)) from error
    digest = hashlib.sha256(f"{hub.name}@{revision}/{hub.config}".encode()).hexdigest()
    return Questions(_all(kind, train), _all(kind, validation), digest)


def _all(kind: Kind, rows: Iterable[dict[str, Any]]) -> tuple[Problem, ...]:
    return tuple(problem(row, kind.choices, f"{kind.hub.name}, row {index}") for index, row in enumerate(rows, 1))


def _unreachable(name: str, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
    return f"{name} cannot be had from the hub: {reason}; without the network take --profile micro or --data-dir"
