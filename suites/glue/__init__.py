"""GLUE fine-tuning: nine tasks, nine rows of `tasks.TASKS`; scored on validation, since test labels are hidden."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn

from baselines.method import Placement, Work
from baselines.shared import targets
from results.catalogue import SuiteEntry
from results.schema import DataFacts, DataPlan, ModelPlan, Plan
from suites import models
from suites.config import Settings
from suites.glue import data as glue_data
from suites.glue import encode, metrics
from suites.glue.tasks import TASKS, GlueTask, entries, get_task
from suites.measure.environment import derived_seed
from suites.suite import HELD_OUT, Batch, Job, Runtime, Scores, TrainAlone

HELD_OUT_FRACTION = 0.1
HELD_OUT_ROWS = 1000
SUBSET_SEED = 0
EVALUATION_BATCH = 64


class GlueSettings(Settings):
    """What a GLUE run can be told."""

    eval_rows: int | None = Field(default=None, gt=0, description="cap on the rows of each evaluated split")
    length_grouping: int = Field(
        default=0, ge=0, description="sort rows by length within so many batches, so that little is padding; 0: not"
    )


@dataclass(frozen=True)
class GlueSuite:
    """The GLUE suite."""

    name: str = "glue"
    tasks: tuple[str, ...] = tuple(TASKS)
    entry: SuiteEntry = SuiteEntry(
        name="glue", title="GLUE", average="glue", metrics=metrics.ENTRIES, tasks=entries(),
        notes=["Scored on validation, since the labels of the test split are hidden"],
    )  # fmt: skip
    work: Work = "fine-tuning"
    settings: type[GlueSettings] = GlueSettings

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

    def model(self, settings: GlueSettings, runtime: Runtime) -> ModelPlan:
        """Return which encoder the settings name."""
        return models.resolve_model(settings.model, runtime)

    def train_rows(self, task: str, settings: GlueSettings, runtime: Runtime) -> int:
        """Return how many rows one epoch has."""
        row = get_task(task)
        if settings.source == "hub":
            rows = row.official_rows["train"]
        else:
            rows = len(_load(task, settings.source, runtime.data_dir, runtime.offline).splits["train"])
        return min(rows, settings.train_rows or rows)

    def verify(self, plan: Plan, runtime: Runtime) -> None:
        """Load the plan's task, so that a fault in the data is found before the first run; not the hub's if none is."""
        if runtime.dry and plan.data.source == "hub":
            return
        _load(plan.task, plan.data.source, runtime.data_dir, runtime.offline)

    def skeleton(self, plan: Plan, runtime: Runtime) -> nn.Module:
        """Return the plan's classifier from its configuration alone."""
        return models.classifier_skeleton(plan.model, runtime, get_task(plan.task).num_labels)

    def placement(self, plan: Plan, runtime: Runtime) -> Placement:
        """Return the target layers of the backbone, and the head that every method trains."""
        with torch.device("meta"):
            return targets.place(self.skeleton(plan, runtime), plan.targets, train_rest=False)

    def encoded(
        self, plan: Plan, runtime: Runtime
    ) -> tuple[glue_data.GlueData, encode.Encoded, dict[str, encode.Encoded]]:
        """Return what was loaded, the tokenised train rows, and the tokenised evaluated splits by name."""
        task = get_task(plan.task)
        loaded = _load(plan.task, plan.data.source, runtime.data_dir, runtime.offline)
        if plan.data.digest is not None and loaded.digest != plan.data.digest:
            raise ValueError(f"data of task {plan.task!r}: it changed since the plan was made; plan again")
        splits = TrainAlone(loaded.splits) if plan.purpose == "tuning" else loaded.splits
        train, evaluated = _splits(task, splits, plan.data)
        tokenizer = models.tokenizer(plan.model, runtime)

        def tokenised(rows: Dataset) -> encode.Encoded:
            return encode.encode(rows, tokenizer, task.text_columns, plan.data.max_length)

        return loaded, tokenised(train), {name: tokenised(rows) for name, rows in evaluated.items()}

    def outline(self, plan: Plan, runtime: Runtime) -> Job:
        """Return the whole job: the shape of its largest batch depends on the rows.

        Where nothing is to be run, nothing is downloaded for it: the largest batch is then one of full rows.
        """
        return _bounded(self, plan, runtime) if runtime.dry and plan.data.source == "hub" else self.job(plan, runtime)

    def job(self, plan: Plan, runtime: Runtime) -> Job:
        """Make one run ready."""
        task = get_task(plan.task)
        loaded, encoded, validation = self.encoded(plan, runtime)
        micro_batch = plan.training.batch_size // plan.training.accumulation
        order = derived_seed(plan.seed, "order")
        head = derived_seed(plan.seed, "model")

        def model() -> nn.Module:
            return models.classifier(plan.model, runtime, task.num_labels, head)

        def batches(start: int) -> Iterator[Batch]:
            return encode.batches(encoded, micro_batch, order, start, plan.data.length_grouping)

        return Job(
            model=model,
            placement=self.placement(plan, runtime),
            batches=batches,
            loss=_loss,
            tokens=_tokens,
            largest=encode.largest_batch(encoded, micro_batch),
            evaluate=lambda network: _evaluate(network, task, validation),
            facts=DataFacts(
                train_rows=len(encoded),
                eval_rows={name: len(rows) for name, rows in validation.items()},
                official=loaded.official,
                notes=loaded.notes,
                constant_scores={
                    f"{name}/{metric}": value
                    for name, rows in validation.items()
                    for metric, value in metrics.majority(task.name, torch.from_numpy(rows.labels)).items()
                },
            ),
            main_metric=main_metric(task, plan.data.held_out),
            evaluation=_largest_evaluation(validation),
        )


def _bounded(suite: GlueSuite, plan: Plan, runtime: Runtime) -> Job:
    """Return a job of full rows alone, an upper bound on what any batch can be."""

    def missing(*_: object) -> Any:
        raise RuntimeError("a bound has no rows: make the job")

    rows, length = plan.training.batch_size // plan.training.accumulation, plan.data.max_length
    task = get_task(plan.task)
    ids = torch.full((rows, length), 5)
    kind = torch.float32 if task.num_labels == 1 else torch.int64
    return Job(
        model=missing,
        placement=suite.placement(plan, runtime),
        batches=missing,
        loss=_loss,
        tokens=_tokens,
        largest={"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(rows, dtype=kind)},
        evaluate=missing,
        facts=DataFacts(train_rows=0, eval_rows={}, official=False),
        main_metric=main_metric(task, plan.data.held_out),
    )


def main_metric(task: GlueTask, held_out: bool) -> str:
    """Return the key of the metric that stands for a task."""
    split, metric = task.main_metric.split("/")
    return f"{HELD_OUT if held_out else split}/{metric}"


@lru_cache(maxsize=2 * len(TASKS))
def _digest(task: str, source: str, data_dir: Path | None) -> str:
    return glue_data.digest_of(task, source, data_dir)


@lru_cache(maxsize=2)
def _load(task: str, source: str, data_dir: Path | None, offline: bool) -> glue_data.GlueData:
    return glue_data.load(task, source, data_dir, offline)


def _splits(task: GlueTask, splits: Mapping[str, Dataset], plan: DataPlan) -> tuple[Dataset, dict[str, Dataset]]:
    train = splits["train"]
    if plan.held_out:
        rows = min(HELD_OUT_ROWS, int(len(train) * HELD_OUT_FRACTION))
        train, held_out = glue_data.hold_out(train, rows, SUBSET_SEED)
        evaluated = {HELD_OUT: held_out}
    else:
        evaluated = {name: splits[name] for name in task.eval_splits}
    train = glue_data.cap(train, plan.train_rows, SUBSET_SEED)
    return train, {name: glue_data.cap(rows, plan.eval_rows, SUBSET_SEED) for name, rows in evaluated.items()}


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def _tokens(batch: Batch) -> int:
    return int(batch["attention_mask"].sum())


@torch.no_grad()
def _evaluate(model: nn.Module, task: GlueTask, validation: dict[str, encode.Encoded]) -> Scores:
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    found: dict[str, float | None] = {}
    for split, rows in validation.items():
        parts, inverse = encode.evaluation_batches(rows, EVALUATION_BATCH)
        logits = [model(**_inputs(batch, device)).logits.float().cpu() for batch in parts]
        values = metrics.compute(task.name, torch.cat(logits)[inverse], torch.from_numpy(rows.labels))
        found |= {f"{split}/{name}": value for name, value in values.items()}
    model.train(training)
    return Scores(rows={split: len(rows) for split, rows in validation.items()}, metrics=found)


def _largest_evaluation(validation: dict[str, encode.Encoded]) -> Batch:
    firsts = [next(encode.evaluation_batches(rows, EVALUATION_BATCH)[0]) for rows in validation.values()]
    return max(firsts, key=lambda batch: batch["input_ids"].numel())


def _inputs(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}


SUITE = GlueSuite()
