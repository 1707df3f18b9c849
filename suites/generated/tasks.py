"""Nine generated tasks with GLUE's shapes: column names, label order, splits and label balance as in `nyu-mll/glue`.

A stated share of the labels of every split is wrong (`Task.noise`), as some of GLUE's own are; no method can learn
those on validation, so a perfect reader of the language stays below 100 %. Scores check the pipeline and the order of
methods; they say nothing about GLUE itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
from collections.abc import Callable

import datasets

from suites.generated import pairs, sentences
from suites.generated.language import Dice

VALIDATION_ROWS = 400
_BINARY_ENTAILMENT = ("entailment", "not_entailment")
Maker = Callable[[int, str, Dice], tuple[str, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One task: columns, labels (none: a score), share of each label and of wrong ones, size, generator, splits."""

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    balance: tuple[float, ...]
    noise: float
    train_rows: int
    make: Maker
    splits: tuple[tuple[str, str], ...] = (("validation", "village"),)


def _reference(label: int, genre: str, dice: Dice) -> tuple[str, ...]:
    item = sentences.reference(genre, dice)
    return item.sentence, sentences.resolved(item, label == 1)


def _similarity(label: int, genre: str, dice: Dice) -> tuple[str, ...]:
    first, second, score = pairs.similarity(genre, dice)
    return first, second, repr(score)


_PAIR = ("sentence1", "sentence2")
_HALF = (0.5, 0.5)
_THIRD = (1 / 3, 1 / 3, 1 / 3)
_MNLI_SPLITS = (("validation_matched", "village"), ("validation_mismatched", "shore"))

_ROWS = (
    Task(
        "cola", ("sentence",), ("unacceptable", "acceptable"), (0.3, 0.7), 0.03, 4000,
        lambda y, g, d: (sentences.acceptability(y == 1, g, d),),
    ),
    Task(
        "sst2", ("sentence",), ("negative", "positive"), _HALF, 0.04, 4000,
        lambda y, g, d: (sentences.review(y == 1, d),),
    ),
    Task(
        "mrpc", _PAIR, ("not_equivalent", "equivalent"), (0.32, 0.68), 0.04, 3600,
        lambda y, g, d: pairs.paraphrase(y == 1, g, d),
    ),
    Task("stsb", _PAIR, (), (), 0.0, 4000, _similarity),
    Task(
        "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), (0.63, 0.37), 0.04, 4000,
        lambda y, g, d: pairs.questions(y == 1, g, d),
    ),
    Task(
        "mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), _THIRD, 0.04, 4000,
        pairs.inference, _MNLI_SPLITS,
    ),
    Task(
        "qnli", ("question", "sentence"), _BINARY_ENTAILMENT, _HALF, 0.04, 4000,
        lambda y, g, d: pairs.answering(y == 0, g, d),
    ),
    Task("rte", _PAIR, _BINARY_ENTAILMENT, _HALF, 0.04, 2500, lambda y, g, d: pairs.recognition(y == 0, g, d)),
    Task("wnli", _PAIR, ("not_entailment", "entailment"), _HALF, 0.04, 1200, _reference),
)  # fmt: skip
TABLE = {row.name: row for row in _ROWS}
TASKS = tuple(TABLE)


def _task(name: str) -> Task:
    if name not in TABLE:
        near = difflib.get_close_matches(name, TASKS, 1, 0.0)
        raise ValueError(f"micro task {name!r} is unknown; known: {', '.join(TASKS)}; nearest: {near[0]}")
    return TABLE[name]


def _label_plan(task: Task, rows: int, dice: Dice) -> list[tuple[int, int]]:
    """(label the text is made for, label written) of every row: exact shares, and an exact number of wrong ones."""
    if not task.labels:
        return [(0, 0)] * rows
    counts = [round(rows * share) for share in task.balance]
    counts[-1] = rows - sum(counts[:-1])
    made = dice.shuffled([label for label, count in enumerate(counts) for _ in range(count)])
    wrong = round(rows * task.noise)
    known = range(len(task.labels))
    return [(label, dice.other(known, label) if row < wrong else label) for row, label in enumerate(made)]


def _split(task: Task, split: str, genre: str, rows: int, seen: set[tuple[str, ...]]) -> datasets.Dataset:
    dice = Dice("micro", task.name, split)
    made: list[tuple[tuple[str, ...], float]] = []
    for label, written in _label_plan(task, rows, dice):
        texts = task.make(label, genre, dice)
        while texts[: len(task.columns)] in seen:
            texts = task.make(label, genre, dice)
        seen.add(texts[: len(task.columns)])
        made.append((texts, written if task.labels else float(texts[-1])))
    made = dice.shuffled(made)
    data: dict[str, list[object]] = {c: [texts[i] for texts, _ in made] for i, c in enumerate(task.columns)}
    data["label"] = [label for _, label in made]
    data["idx"] = list(range(rows))
    features: dict[str, object] = {column: datasets.Value("string") for column in task.columns}
    features["label"] = datasets.ClassLabel(names=list(task.labels)) if task.labels else datasets.Value("float32")
    features["idx"] = datasets.Value("int32")
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


@functools.cache
def _generated(name: str) -> dict[str, datasets.Dataset]:
    task = _task(name)
    seen: set[tuple[str, ...]] = set()
    splits = {split: _split(task, split, genre, VALIDATION_ROWS, seen) for split, genre in task.splits}
    return {"train": _split(task, "train", "village", task.train_rows, seen), **splits}


def load(task: str) -> dict[str, datasets.Dataset]:
    """The splits of a task, generated; the same rows on every machine. No text of validation is in train.

    Raises:
        ValueError: an unknown task.
    """
    return dict(_generated(_task(task).name))


def digest(task: str) -> str:
    """sha256 over the task's rows in order, split by split, as canonical JSON.

    Raises:
        ValueError: an unknown task.
    """
    total = hashlib.sha256()
    for split, data in sorted(load(task).items()):
        columns = data.column_names
        total.update(json.dumps([split, columns]).encode())
        for row in zip(*(data[column][:] for column in columns), strict=True):
            values = [round(value, 3) if isinstance(value, float) else value for value in row]
            total.update(json.dumps(values, separators=(",", ":")).encode())
    return total.hexdigest()
