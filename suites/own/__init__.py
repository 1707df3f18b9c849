"""Own tasks: sentence or pair classification, or a number to tell, from files or the hub, described by one file.

    python -m suites run own --task reviews.toml --model path/to/model

What such a file says: `suites.own.tasks.TaskFile`. It may also be Python, for a metric of one's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from baselines.method import Work
from results.catalogue import SuiteEntry
from results.schema import DataPlan
from suites.own import metrics
from suites.own.data import loaded
from suites.own.metrics import Metric as Metric
from suites.own.tasks import OwnTask, add_task, all_tasks, get_task
from suites.own.tasks import TaskFile as Task
from suites.suite import Runtime
from suites.text.classification import Classification, ClassificationSettings, Measured
from suites.text.rows import Loaded

__all__ = ["SUITE", "Metric", "Task"]


class OwnSettings(ClassificationSettings):
    """What a run of an own task can be told; where its rows come from stands in the task's file."""


@dataclass(frozen=True)
class OwnSuite(Classification[OwnTask]):
    """The suite of tasks that come from outside."""

    name: str = "own"
    work: Work = "fine-tuning"
    settings: type[OwnSettings] = OwnSettings

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that files have brought so far."""
        return tuple(all_tasks())

    @property
    def entry(self) -> SuiteEntry:
        """The suite as readers of its records know it."""
        tasks = all_tasks().values()
        own = [metric.entry for task in tasks for metric in task.metrics]
        entries = {entry.name: entry for entry in [*metrics.ENTRIES, *own]}
        described = [task.entry(place) for place, task in enumerate(tasks)]
        return SuiteEntry(name="own", title="Own tasks", metrics=list(entries.values()), tasks=described)

    def add_task(self, path: Path) -> str:
        """Make the task of a file known, and return its name."""
        return add_task(path)

    def row(self, task: str) -> OwnTask:
        """Return a task with the names of its classes, which may have come from its rows."""
        return loaded(get_task(task))[0]

    def load(self, task: str, data: DataPlan, runtime: Runtime) -> Loaded:
        """Return the task's rows."""
        return loaded(get_task(task))[1]

    def data(self, task: str, settings: OwnSettings, runtime: Runtime) -> DataPlan:
        """Return what the task's rows are; a digest names them and the task's description, no path does."""
        if runtime.data_dir is not None:
            raise ValueError(
                f"data-dir {runtime.data_dir}: where its rows are stands in the task's own file; leave it out"
            )
        found = loaded(get_task(task))[1]
        return DataPlan(
            source="hub" if found.revision else "directory",
            name=get_task(task).hub or task,
            revision=found.revision,
            digest=found.digest,
            max_length=settings.max_length,
            train_rows=settings.train_rows,
            eval_rows=settings.eval_rows,
            length_grouping=settings.length_grouping,
        )

    def train_rows(self, task: str, settings: OwnSettings, runtime: Runtime) -> int:
        """Return how many rows one epoch has."""
        rows = len(loaded(get_task(task))[1].splits["train"])
        return min(rows, settings.train_rows or rows)

    def score(self, task: str, predictions: Tensor, references: Tensor) -> Measured:
        """Return the task's metrics."""
        return metrics.compute(self.row(task), predictions, references)

    def constant(self, task: str, references: Tensor) -> Measured:
        """Return the scores of the most frequent class, or of the mean."""
        if self.row(task).regression:
            guess = references.double().mean().expand(len(references))
        else:
            guess = references.mode().values.expand(len(references))
        return metrics.compute(self.row(task), guess.to(torch.float64), references)


SUITE = OwnSuite()
