"""C4's documents: JSON lines in a folder, streamed from the hub, or generated; no validation document stands in train.

Every error is one line that names the file, the line and the rule. Nothing falls back to another source.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that the hub client uses

from suites.generated import text as generated
from suites.text.rows import Stamp, stamp

HUB_NAME, HUB_CONFIG = "allenai/c4", "en"
# The commit that public repositories quote for allenai/c4 (hf://datasets/allenai/c4@<hash>/en/c4-train.00000-...). Not
# resolved at run time, so that a plan names its data before anything is downloaded.
HUB_REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
OFFICIAL_ROWS = {"train": 364_868_892, "validation": 364_608}
SPLITS = ("train", "validation")
BOM = b"\xef\xbb\xbf"
ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
MICRO_ROWS = {"train": 10_000, "validation": 400}
# Protocol: the validation split is shuffled with this seed, and its first documents up to the budget are evaluated.
VALIDATION_SEED = 42
TRAIN_BUFFER, VALIDATION_BUFFER = 10_000, 1_000
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Corpus:
    """Documents held in memory.

    Attributes:
        train: texts to train on, none of which is among `evaluated`.
        evaluated: texts of the validation split, or of the held-out part of train.
        dropped: train documents left out because their text is in the validation split.
        official: both splits have the official number of rows; the texts are not compared.
    """

    train: tuple[str, ...]
    evaluated: tuple[str, ...]
    dropped: int
    official: bool


def load(source: str, data_dir: Path | None, train_rows: int | None, held_out: bool) -> Corpus:
    """Return the documents of a finite source.

    Args:
        source: "directory" (needs `data_dir`) or "micro".
        train_rows: cap on train documents, the first ones; None = all (micro: MICRO_ROWS).
        held_out: evaluate every `HELD_OUT_EVERY`-th train document, and train on the others.

    Raises:
        ValueError: files missing, empty or malformed; nothing left to train on.
    """
    return _load_at(source, data_dir, train_rows, held_out, _stamp(data_dir) if source == "directory" else ())


@lru_cache(maxsize=2)
def _load_at(source: str, data_dir: Path | None, train_rows: int | None, held_out: bool, versions: Stamp) -> Corpus:
    if source == "micro":
        rows = {**MICRO_ROWS, "train": train_rows or MICRO_ROWS["train"]}
        splits = {split: [generated.document(split, index) for index in range(rows[split])] for split in SPLITS}
    else:
        splits = {split: list(read(paths)) for split, paths in files(data_dir).items()}
    known = {content_hash(text) for text in splits["validation"]}
    train = [text for text in splits["train"][:train_rows] if content_hash(text) not in known]
    dropped = len(splits["train"][:train_rows]) - len(train)
    if not train:
        raise ValueError(f"train: none of its {dropped} documents is left, all are in validation too")
    official = all(len(splits[split]) == OFFICIAL_ROWS[split] for split in SPLITS)
    if not held_out:
        return Corpus(tuple(train), tuple(splits["validation"]), dropped, official)
    kept = [text for index, text in enumerate(train) if not is_held_out(index)]
    held = tuple(text for index, text in enumerate(train) if is_held_out(index))
    if not held:
        raise ValueError(f"train: {len(train)} documents are too few to hold some out, at least {HELD_OUT_EVERY}")
    apart = set(held)
    return Corpus(tuple(text for text in kept if text not in apart), held, dropped, official)


def is_held_out(index: int) -> bool:
    """Whether the train document at `index` belongs to the held-out part."""
    return index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def content_hash(text: str) -> bytes:
    """Return what stands for a document's text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def files(data_dir: Path | None) -> dict[str, list[Path]]:
    """Return the files of each split, in the folder or its folder `en`: the first whole word of a name that is
    "train" or "validation" decides, as in `c4-train.00000-of-01024.json.gz`.

    Raises:
        ValueError: no folder given, or none there; a split without a file.
    """
    if data_dir is None:
        raise ValueError("source 'directory': needs a folder of JSON lines, given with --data-dir")
    if not data_dir.is_dir():
        raise ValueError(f"data folder {data_dir}: is not there")
    root = data_dir / HUB_CONFIG if (data_dir / HUB_CONFIG).is_dir() else data_dir
    found: dict[str, list[Path]] = {}
    for split in SPLITS:
        found[split] = sorted(path for path in root.iterdir() if _split_of(path) == split)
        if not found[split]:
            raise ValueError(
                f"data folder {root}: has no file for {split}; a name holds {split!r} as a word and ends in "
                f"{', '.join(ENDINGS)}"
            )
    return found


def _split_of(path: Path) -> str | None:
    if not path.name.endswith(ENDINGS):
        return None
    return next((word for word in re.split(r"[^a-z0-9]+", path.name.lower()) if word in SPLITS), None)


def _stamp(data_dir: Path | None) -> Stamp:
    return stamp(path for paths in files(data_dir).values() for path in paths)


def directory_digest(data_dir: Path | None) -> str:
    """sha256 over "sha256 name" lines of the files used, without parsing them.

    Raises:
        ValueError: a file is missing or cannot be read.
    """
    return _digest_at(data_dir, _stamp(data_dir))


@lru_cache(maxsize=4)
def _digest_at(data_dir: Path | None, versions: Stamp) -> str:
    lines = []
    for paths in files(data_dir).values():
        for path in paths:
            try:
                with path.open("rb") as stream:
                    lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()} {path.name}\n")
            except OSError as error:
                raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the text of every line of JSON-lines files, plain or gzip; a byte order mark and blank last lines are fine.

    Raises:
        ValueError: an empty file, or a line that is not a JSON object with a non-empty `text`; names file and line.
    """
    for path in paths:
        number, blank = 0, 0
        try:
            with _opened(path) as stream:
                for number, line in enumerate(stream, start=1):
                    if not line.strip():
                        blank = blank or number
                        continue
                    if blank:
                        raise ValueError(f"{path}: line {blank}: is blank; every line must be a JSON object")
                    yield _text(line.removeprefix(BOM) if number == 1 else line, f"{path}: line {number}")
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: cannot be read after line {number}: {error}") from error
        if not number or blank == 1:
            raise ValueError(f"{path}: is empty; every line must be a JSON object with a field 'text'")


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    # Lines are decoded one by one, so that what is wrong in one is said with its number.
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _text(line: bytes, where: str) -> str:
    try:
        row: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        value = line[error.start : error.end].hex(" ")
        raise ValueError(f"{where}, byte {error.start + 1}: not UTF-8: {value}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: JSON nested too deep to read") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        given = f"the fields are {', '.join(row) or 'none'}" if isinstance(row, dict) else "the line is no object"
        raise ValueError(f"{where}: has no 'text' that is a string with something in it; {given}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: half a surrogate pair, {text[error.start : error.end]!a}, at character {error.start + 1} of "
            "'text': no character"
        ) from error
    return text


def hub_validation(offline: bool) -> Iterator[str]:
    """Yield the texts of the official validation split in the protocol's order.

    Raises:
        ValueError: the hub does not answer, or may not be asked.
    """
    stream = _hub("validation", offline).shuffle(seed=VALIDATION_SEED, buffer_size=VALIDATION_BUFFER)
    yield from _guarded(stream)


def hub_train(offline: bool, seed: int, epoch: int, keep: Callable[[str], bool]) -> Iterator[str]:
    """Yield the texts of the official train split that `keep` wants, shuffled by seed and epoch.

    Raises:
        ValueError: the hub does not answer, or may not be asked.
    """
    stream = _hub("train", offline).shuffle(seed=seed, buffer_size=TRAIN_BUFFER)
    stream.set_epoch(epoch)
    yield from filter(keep, _guarded(stream))


def _hub(split: str, offline: bool) -> Any:
    if offline:
        raise ValueError(f"{HUB_NAME} needs the network, which --offline forbids; give a folder with --data-dir")
    import datasets

    try:
        return datasets.load_dataset(HUB_NAME, HUB_CONFIG, split=split, revision=HUB_REVISION, streaming=True)
    except (OSError, HTTPError, ValueError) as error:
        raise ValueError(_unreachable(error)) from error


def _guarded(stream: Iterable[dict[str, Any]]) -> Iterator[str]:
    try:
        for row in stream:
            yield row["text"]
    except (OSError, HTTPError) as error:
        raise ValueError(_unreachable(error)) from error


def _unreachable(error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
    return f"{HUB_NAME} cannot be had from the hub: {reason}; without the network take --profile micro or --data-dir"
