"""What describes an own task, in TOML or in Python, and the tasks that a launch was given."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from baselines.registry import checked_name, module_of
from results.catalogue import TaskEntry
from suites.config import validated
from suites.own.metrics import TWO_CLASSES, Metric, metrics_of

ENDINGS = (".toml", ".py")


class TaskFile(BaseModel):
    """A task as its file says it: a table in TOML, or `TASK = Task(...)` in Python.

    Rows come from `train` and `validation`, files beside this one (.csv, .tsv, .jsonl, .json, .parquet), or from `hub`.
    Without validation a tenth of train is held out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$", description="as typed and in file names")
    title: str | None = Field(default=None, min_length=1, description="as in tables; default: the name")
    text: str | tuple[str, ...] = Field(description="the column of the text, or two columns of a pair")
    label: str = Field(default="label", description="the column of the label")
    labels: tuple[str, ...] | None = Field(default=None, description="the classes, in order; default: those of train")
    regression: bool = Field(default=False, description="the label is a number")
    metrics: str | tuple[str | Metric, ...] = Field(default=(), description="names or functions; the first one stands")
    train: str | None = None
    validation: str | None = None
    hub: str | None = Field(default=None, description="owner/name of a data set")
    hub_config: str | None = None
    revision: str | None = Field(default=None, description="commit on the hub; default: main's as it now stands")
    train_split: str = "train"
    validation_split: str | None = "validation"

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # Labels may be typed as numbers; rows are compared as text.
        return tuple(map(str, value)) if isinstance(value, (list, tuple)) else value

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of text."""
        return (self.text,) if isinstance(self.text, str) else self.text

    def check(self, where: str) -> None:
        """Raise ValueError for what does not go together."""
        if not 1 <= len(set(self.columns)) == len(self.columns) <= 2:
            raise ValueError(f"{where}: text {list(self.columns)}: must be one column, or two different ones")
        if self.label in self.columns:
            raise ValueError(f"{where}: label {self.label!r}: is a column of text too")
        if (self.train is None) == (self.hub is None):
            raise ValueError(f"{where}: train and hub: give exactly one of the two, a file or owner/name")
        if self.hub is None and (self.hub_config or self.revision):
            raise ValueError(f"{where}: hub_config and revision: are of hub, which is not given")
        if self.hub is not None and self.validation is not None:
            raise ValueError(f"{where}: validation {self.validation!r}: a hub's is named by validation_split")
        if self.regression and self.labels is not None:
            raise ValueError(f"{where}: labels and regression: a number has no classes; leave one of the two out")
        if self.labels is not None and not len(self.labels) == len(set(self.labels)) >= 2:
            raise ValueError(f"{where}: labels {list(self.labels)}: must be at least two different classes")


@dataclass(frozen=True)
class OwnTask:
    """One own task made ready; `labels` are None for a number, and until its rows are read where the file has none."""

    name: str
    title: str
    columns: tuple[str, ...]
    label: str
    labels: tuple[str, ...] | None
    regression: bool
    metrics: tuple[Metric, ...]
    file: TaskFile
    path: Path
    digest: str

    @property
    def folder(self) -> Path:
        """Where its file stands, and its rows beside it."""
        return self.path.parent

    @property
    def hub(self) -> str | None:
        """The hub's name of its data."""
        return self.file.hub

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of text as they are called once read."""
        return ("text",) if len(self.columns) == 1 else ("text1", "text2")

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return 1 if self.labels is None else len(self.labels)

    @property
    def eval_splits(self) -> tuple[str, ...]:
        """What is scored."""
        return ("validation",)

    @property
    def main_metric(self) -> str:
        """The metric that stands for the task."""
        return f"validation/{self.metrics[0].name}"

    def with_labels(self, labels: tuple[str, ...] | None) -> OwnTask:
        """Return the task with its classes.

        Raises:
            ValueError: a metric of two classes for another number of them.
        """
        for metric in self.metrics:
            if metric.name in TWO_CLASSES and labels is not None and len(labels) != 2:
                raise ValueError(
                    f"task {self.name!r}: metric {metric.name!r} is of two classes, it has {len(labels)} (nearest "
                    f"allowed value: {metric.name}_macro)"
                )
        return replace(self, labels=labels)

    def entry(self, place: int) -> TaskEntry:
        """Return the task as readers of records know it."""
        rule = "the mean of the evaluated rows" if self.regression else "the most frequent class of the evaluated rows"
        return TaskEntry(
            name=self.name,
            title=self.title,
            order=place,
            main_metric=self.main_metric,
            metrics=[metric.name for metric in self.metrics],
            constant="Constant prediction",
            constant_rule=f"{rule} for every row; undefined for correlations",
        )


_known: dict[str, OwnTask] = {}


def all_tasks() -> dict[str, OwnTask]:
    """Return the tasks that files have brought, by name."""
    return dict(_known)


def get_task(name: str) -> OwnTask:
    """Return the task called `name`.

    Raises:
        ValueError: no file has brought it.
    """
    return _known[checked_name(name, _known, "own task (a file brings one: --task path/to/task.toml)")]


def add_task(path: Path) -> str:
    """Make the task of a file known, and return its name.

    Raises:
        ValueError: no such file, or it does not say what is needed; the text names file, field and rule. Another file
            has brought a task of its name.
    """
    task = read_task(path)
    before = _known.get(task.name)
    if before is not None and before.path != task.path:
        raise ValueError(f"task {task.name!r}: stands in {before.path} and in {task.path}: rename one of the two")
    _known[task.name] = task
    return task.name


def read_task(path: Path) -> OwnTask:
    """Return the task of a file, `.toml` or `.py`.

    Raises:
        ValueError: see `add_task`.
    """
    if path.suffix not in ENDINGS or not path.is_file():
        raise ValueError(f"task {str(path)!r}: must be a file that is there and ends in {' or '.join(ENDINGS)}")
    try:
        file = _from_python(path) if path.suffix == ".py" else validated(TaskFile, _table(path), "task's")
    except ValueError as error:
        raise ValueError(error if path.name in str(error) else f"{path}: {error}") from error
    file.check(str(path))
    given = (file.metrics,) if isinstance(file.metrics, str) else file.metrics
    return OwnTask(
        name=file.name,
        title=file.title or file.name,
        columns=file.columns,
        label=file.label,
        labels=file.labels,
        regression=file.regression,
        metrics=metrics_of(given, file.regression, f"task {file.name!r}"),
        file=file,
        path=path.resolve(),
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no TOML: {error}") from error


def _from_python(path: Path) -> TaskFile:
    found = getattr(module_of(path), "TASK", None)
    if not isinstance(found, TaskFile):
        raise ValueError(f"{path}: has no TASK = Task(...); `from suites.own import Metric, Task` has both")
    return found
