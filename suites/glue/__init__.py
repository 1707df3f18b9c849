"""GLUE fine-tuning: nine tasks, nine rows of `tasks.TASKS`; scored on validation, since test labels are hidden."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from baselines.method import Work
from results.catalogue import SuiteEntry
from results.schema import DataPlan
from suites.glue import data as glue_data
from suites.glue import metrics
from suites.glue.tasks import TASKS, GlueTask, entries, get_task
from suites.suite import Runtime
from suites.text.classification import Classification, ClassificationSettings, Measured
from suites.text.rows import Loaded, Stamp


class GlueSettings(ClassificationSettings):
    """What a GLUE run can be told."""


@dataclass(frozen=True)
class GlueSuite(Classification[GlueTask]):
    """The GLUE suite."""

    name: str = "glue"
    tasks: tuple[str, ...] = tuple(TASKS)
    entry: SuiteEntry = SuiteEntry(
        name="glue", title="GLUE", average="glue", metrics=metrics.ENTRIES, tasks=entries(),
        notes=["No score is of the test split: its labels are hidden"],
    )  # fmt: skip
    work: Work = "fine-tuning"
    settings: type[GlueSettings] = GlueSettings

    def row(self, task: str) -> GlueTask:
        """Return a task by its hub name."""
        return get_task(task)

    def load(self, task: str, data: DataPlan, runtime: Runtime) -> Loaded:
        """Return the task's rows from the source that the plan names."""
        return _load(task, data.source, runtime.data_dir, runtime.offline)

    def data(self, task: str, settings: GlueSettings, runtime: Runtime) -> DataPlan:
        """Return what the task's rows are; a digest names them, no path does."""
        row = get_task(task)
        hub = settings.source == "hub"
        return DataPlan(
            source=settings.source,
            name=glue_data.HUB_NAME if hub else row.folder,
            revision=glue_data.HUB_REVISION if hub else None,
            digest=_digest(task, settings.source, runtime.data_dir),
            max_length=settings.max_length,
            train_rows=settings.train_rows,
            eval_rows=settings.eval_rows,
            length_grouping=settings.length_grouping,
        )

    def train_rows(self, task: str, settings: GlueSettings, runtime: Runtime) -> int:
        """Return how many rows one epoch has."""
        row = get_task(task)
        if settings.source == "hub":
            rows = row.official_rows["train"]
        else:
            rows = len(_load(task, settings.source, runtime.data_dir, runtime.offline).splits["train"])
        return min(rows, settings.train_rows or rows)

    def score(self, task: str, predictions: Tensor, references: Tensor) -> Measured:
        """Return the task's metrics."""
        return metrics.compute(task, predictions, references)

    def constant(self, task: str, references: Tensor) -> Measured:
        """Return the scores of the most frequent class, or of the mean."""
        return metrics.majority(task, references)


def _digest(task: str, source: str, data_dir: Path | None) -> str:
    return _digest_at(task, source, data_dir, glue_data.stamp_of(task, source, data_dir))


@lru_cache(maxsize=2 * len(TASKS))
def _digest_at(task: str, source: str, data_dir: Path | None, files: Stamp) -> str:
    return glue_data.digest_of(task, source, data_dir)


def _load(task: str, source: str, data_dir: Path | None, offline: bool) -> Loaded:
    return _load_at(task, source, data_dir, offline, glue_data.stamp_of(task, source, data_dir))


@lru_cache(maxsize=2)
def _load_at(task: str, source: str, data_dir: Path | None, offline: bool, files: Stamp) -> Loaded:
    return glue_data.load(task, source, data_dir, offline)


SUITE = GlueSuite()
