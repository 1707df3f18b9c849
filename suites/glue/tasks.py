"""The nine GLUE tasks, one row each: columns, labels, files, splits, metrics, official row counts.

Column names, label names and their order are those of the hub's `nyu-mll/glue`; file names, headers and label words are
those of the official TSV release. The test splits are left out, since their labels are hidden.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from results.catalogue import TaskEntry


@dataclass(frozen=True)
class Layout:
    """Where a task's columns stand in the official TSV files.

    Attributes:
        text: header names of the text columns, in the order of `GlueTask.text_columns`.
        label: header name of the label column.
        words: label words in class order; None where the label is a number (STS-B).
        header: column names of files that have no header line; None: the first line of the file names them.
        broken_lines: the official files hold lines that a line break inside a text cut in two, which the hub's release
            leaves out (QQP); such lines are tolerated only where the rows that remain are exactly the official ones.
    """

    text: tuple[str, ...]
    label: str
    words: tuple[str, ...] | None
    header: tuple[str, ...] | None = None
    broken_lines: bool = False


@dataclass(frozen=True)
class GlueTask:
    """One GLUE task.

    Attributes:
        name: configuration name on the hub.
        title: the name in papers.
        folder: folder in the official TSV layout.
        text_columns: one or two text columns.
        labels: class names in the hub's order; None for regression.
        eval_splits: splits that are scored, each under its own name.
        metrics: metrics that are always reported together.
        main_metric: "split/metric" that stands for the task in tables (MRPC: F1, as the compared papers print it).
        official_rows: rows of each split in the official release.
        layout: the TSV files.
        choices: how papers read it otherwise than by its main metric alone: (name, "split/metric"), the main one first;
            their mean is a choice too.
        averaged: whether GLUE's average is over it.
    """

    name: str
    title: str
    folder: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    main_metric: str
    official_rows: Mapping[str, int] = field(hash=False)
    layout: Layout
    eval_splits: tuple[str, ...] = ("validation",)
    choices: tuple[tuple[str, str], ...] = ()
    averaged: Literal["always", "by some", "never"] = "never"

    @property
    def readings(self) -> dict[str, list[str]]:
        """Return every choice, and their mean where there are several, with the keys whose mean is the score."""
        found = {name: [key] for name, key in self.choices}
        return found | ({"mean": [key for _, key in self.choices]} if found else {})

    @property
    def regression(self) -> bool:
        """True where the label is a number, not a class."""
        return self.labels is None

    @property
    def num_labels(self) -> int:
        """Outputs of the classification head; 1 for regression."""
        return 1 if self.labels is None else len(self.labels)

    @property
    def splits(self) -> tuple[str, ...]:
        """Train, then the evaluated splits."""
        return ("train", *self.eval_splits)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of a loaded split."""
        return (*self.text_columns, "label", "idx")

    @property
    def files(self) -> dict[str, str]:
        """Split -> file name inside `folder` ("validation" is called "dev" there)."""
        return {split: split.replace("validation", "dev") + ".tsv" for split in self.splits}


_PAIR = ("sentence1", "sentence2")
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")

_ROWS = (
    GlueTask(
        name="cola",
        title="CoLA",
        folder="CoLA",
        text_columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        main_metric="validation/matthews",
        official_rows={"train": 8551, "validation": 1043},
        layout=Layout(("sentence",), "label", _BINARY, header=("source", "label", "mark", "sentence")),
        averaged="always",
    ),
    GlueTask(
        name="sst2",
        title="SST-2",
        folder="SST-2",
        text_columns=("sentence",),
        labels=("negative", "positive"),
        metrics=("accuracy",),
        main_metric="validation/accuracy",
        official_rows={"train": 67349, "validation": 872},
        layout=Layout(("sentence",), "label", _BINARY),
        averaged="always",
    ),
    GlueTask(
        name="mrpc",
        title="MRPC",
        folder="MRPC",
        text_columns=_PAIR,
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        main_metric="validation/f1",
        official_rows={"train": 3668, "validation": 408},
        layout=Layout(("#1 String", "#2 String"), "Quality", _BINARY),
        averaged="always",
        choices=(("f1", "validation/f1"), ("accuracy", "validation/accuracy")),
    ),
    GlueTask(
        name="stsb",
        title="STS-B",
        folder="STS-B",
        text_columns=_PAIR,
        labels=None,
        metrics=("pearson", "spearman"),
        main_metric="validation/pearson",
        official_rows={"train": 5749, "validation": 1500},
        layout=Layout(_PAIR, "score", None),
        averaged="always",
        choices=(("pearson", "validation/pearson"), ("spearman", "validation/spearman")),
    ),
    GlueTask(
        name="qqp",
        title="QQP",
        folder="QQP",
        text_columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        main_metric="validation/accuracy",
        official_rows={"train": 363846, "validation": 40430},
        layout=Layout(("question1", "question2"), "is_duplicate", _BINARY, broken_lines=True),
        averaged="always",
        choices=(("accuracy", "validation/accuracy"), ("f1", "validation/f1")),
    ),
    GlueTask(
        name="mnli",
        title="MNLI",
        folder="MNLI",
        text_columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        main_metric="validation_matched/accuracy",
        official_rows={"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
        layout=Layout(_PAIR, "gold_label", ("entailment", "neutral", "contradiction")),
        eval_splits=("validation_matched", "validation_mismatched"),
        averaged="always",
        choices=(
            ("matched", "validation_matched/accuracy"),
            ("mismatched", "validation_mismatched/accuracy"),
        ),
    ),
    GlueTask(
        name="qnli",
        title="QNLI",
        folder="QNLI",
        text_columns=("question", "sentence"),
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        main_metric="validation/accuracy",
        official_rows={"train": 104743, "validation": 5463},
        layout=Layout(("question", "sentence"), "label", _ENTAILMENT),
        averaged="always",
    ),
    GlueTask(
        name="rte",
        title="RTE",
        folder="RTE",
        text_columns=_PAIR,
        labels=_ENTAILMENT,
        metrics=("accuracy",),
        main_metric="validation/accuracy",
        official_rows={"train": 2490, "validation": 277},
        layout=Layout(_PAIR, "label", _ENTAILMENT),
        averaged="always",
    ),
    GlueTask(
        name="wnli",
        title="WNLI",
        folder="WNLI",
        text_columns=_PAIR,
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        main_metric="validation/accuracy",
        official_rows={"train": 635, "validation": 71},
        layout=Layout(_PAIR, "label", _BINARY),
        averaged="by some",
    ),
)

TASKS: dict[str, GlueTask] = {task.name: task for task in _ROWS}


CONSTANT_RULE = "the most frequent class of the evaluated rows for every row; undefined for correlations"


def entries() -> list[TaskEntry]:
    """Return the tasks as readers of records know them."""
    return [
        TaskEntry(
            name=task.name, title=task.title, order=place, main_metric=task.main_metric, metrics=list(task.metrics),
            readings=task.readings, averaged=task.averaged, constant="Constant prediction",
            constant_rule=CONSTANT_RULE,
            official_rows={split: task.official_rows[split] for split in task.eval_splits},
        )
        for place, task in enumerate(TASKS.values())
    ]  # fmt: skip


def nearest(value: str, known: tuple[str, ...]) -> str:
    """The known name most similar to `value` by difflib, without regard to case; the first of equals."""
    return max(known, key=lambda name: difflib.SequenceMatcher(None, value.lower(), name.lower()).ratio())


def get_task(name: str) -> GlueTask:
    """The row of a task by its hub name.

    Raises:
        ValueError: unknown name; the text lists the known names and the nearest.
    """
    if name not in TASKS:
        known = tuple(TASKS)
        raise ValueError(
            f"unknown GLUE task {name!r}: known are {', '.join(known)}; nearest is {nearest(name, known)!r}"
        )
    return TASKS[name]
