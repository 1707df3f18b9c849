"""What suites of sentence and pair classification share: encoded rows, batches, a head, evaluation split by split.

A suite adds where its tasks come from and how they are scored; see `suites.glue` and `suites.own`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn

from baselines.method import Placement
from baselines.shared import targets
from results.schema import DataFacts, DataPlan, ModelPlan, Plan
from suites import models
from suites.config import Settings
from suites.measure.environment import derived_seed
from suites.suite import HELD_OUT, Batch, Job, Runtime, Scores, TrainAlone
from suites.text import encode
from suites.text.rows import Loaded, cap, hold_out

HELD_OUT_FRACTION = 0.1
HELD_OUT_ROWS = 1000
SUBSET_SEED = 0
EVALUATION_BATCH = 64
UNKNOWN_FROM = 0.1
"""Share of unknown words from which a tokenizer is said not to know the data."""


class ClassificationSettings(Settings):
    """What a run of sentence or pair classification can be told."""

    eval_rows: int | None = Field(default=None, gt=0, description="cap on the rows of each evaluated split")
    length_grouping: int = Field(
        default=0, ge=0, description="sort rows by length within so many batches, so that little is padding; 0: not"
    )


class TextTask(Protocol):
    """One task: one or two text columns, classes or a number."""

    @property
    def name(self) -> str: ...
    @property
    def text_columns(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> tuple[str, ...] | None: ...
    @property
    def num_labels(self) -> int: ...
    @property
    def main_metric(self) -> str: ...
    @property
    def eval_splits(self) -> tuple[str, ...]: ...


T = TypeVar("T", bound=TextTask)
Measured = dict[str, float | None]


@dataclass(frozen=True)
class Classification(ABC, Generic[T]):
    """A suite of such tasks, but for what is abstract here."""

    @abstractmethod
    def row(self, task: str) -> T:
        """Return a task by its name."""

    @abstractmethod
    def load(self, task: str, data: DataPlan, runtime: Runtime) -> Loaded:
        """Return the task's rows as the plan's data says."""

    @abstractmethod
    def score(self, task: str, predictions: Tensor, references: Tensor) -> Measured:
        """Return all metrics of logits (N, C)."""

    @abstractmethod
    def constant(self, task: str, references: Tensor) -> Measured:
        """Return the scores of the best constant guess."""

    def model(self, settings: Any, runtime: Runtime) -> ModelPlan:
        """Return which encoder the settings name."""
        return models.resolve_model(settings.model, runtime)

    def verify(self, plan: Plan, runtime: Runtime) -> list[str]:
        """Load the plan's task and its tokenizer, so that what does not fit is found before the first run."""
        if runtime.dry and plan.data.source == "hub":
            return []
        loaded = self.load(plan.task, plan.data, runtime)
        if runtime.dry and plan.model.source == "hub":
            return []
        notes = models.check_text(plan.model, runtime, plan.data.max_length)
        columns = self.row(plan.task).text_columns
        encode.check_room(models.tokenizer(plan.model, runtime), columns, plan.data.max_length)
        return notes + self._unknown(plan, loaded, runtime)

    def _unknown(self, plan: Plan, loaded: Loaded, runtime: Runtime) -> list[str]:
        tokenizer = models.tokenizer(plan.model, runtime)
        share = encode.unknown_share(loaded.splits["train"], tokenizer, self.row(plan.task).text_columns)
        if share < UNKNOWN_FROM:
            return []
        return [
            f"warning: {share:.0%} of the words of task {plan.task} are unknown to the tokenizer of model "
            f"{plan.model.name}: it was made for other text, and scores will say little of any method"
        ]

    def skeleton(self, plan: Plan, runtime: Runtime) -> nn.Module:
        """Return the plan's classifier from its configuration alone."""
        return models.classifier_skeleton(plan.model, runtime, self.row(plan.task).num_labels)

    def placement(self, plan: Plan, runtime: Runtime) -> Placement:
        """Return the target layers of the backbone, and the head that every method trains."""
        with torch.device("meta"):
            return targets.place(self.skeleton(plan, runtime), plan.targets, train_rest=False)

    def encoded(self, plan: Plan, runtime: Runtime) -> tuple[Loaded, encode.Encoded, dict[str, encode.Encoded]]:
        """Return what was loaded, the tokenised train rows, and the tokenised evaluated splits by name."""
        task = self.row(plan.task)
        loaded = self.load(plan.task, plan.data, runtime)
        if plan.data.digest is not None and loaded.digest != plan.data.digest:
            raise ValueError(f"data of task {plan.task!r}: it changed since the plan was made; plan again")
        held = TrainAlone(loaded.splits) if plan.purpose == "tuning" else loaded.splits
        train, evaluated = splits(task, held, plan.data)
        tokenizer = models.tokenizer(plan.model, runtime)

        def tokenised(rows: Dataset) -> encode.Encoded:
            return encode.encode(rows, tokenizer, task.text_columns, plan.data.max_length)

        return loaded, tokenised(train), {name: tokenised(rows) for name, rows in evaluated.items()}

    def outline(self, plan: Plan, runtime: Runtime) -> Job:
        """Return the whole job: the shape of its largest batch depends on the rows.

        Where nothing is to be run, nothing is downloaded for it: the largest batch is then one of full rows.
        """
        return self._bounded(plan, runtime) if runtime.dry and plan.data.source == "hub" else self.job(plan, runtime)

    def job(self, plan: Plan, runtime: Runtime) -> Job:
        """Make one run ready."""
        task = self.row(plan.task)
        loaded, encoded, validation = self.encoded(plan, runtime)
        micro_batch = plan.training.batch_size // plan.training.accumulation
        order = derived_seed(plan.seed, "order")
        head = derived_seed(plan.seed, "model")

        def model() -> nn.Module:
            made = models.classifier(plan.model, runtime, task.num_labels, head)
            models.name_labels(made, task.labels)
            return made

        def batches(start: int) -> Iterator[Batch]:
            return encode.batches(encoded, micro_batch, order, start, plan.data.length_grouping)

        return Job(
            model=model,
            placement=self.placement(plan, runtime),
            batches=batches,
            loss=_loss,
            tokens=_tokens,
            largest=encode.largest_batch(encoded, micro_batch),
            evaluate=lambda network: self._evaluate(network, task, validation),
            facts=DataFacts(
                train_rows=len(encoded),
                eval_rows={name: len(rows) for name, rows in validation.items()},
                official=loaded.official,
                notes=loaded.notes + self._unknown(plan, loaded, runtime),
                constant_scores={
                    f"{name}/{metric}": value
                    for name, rows in validation.items()
                    for metric, value in self.constant(task.name, torch.from_numpy(rows.labels)).items()
                },
            ),
            main_metric=main_metric(task, plan.data.held_out),
            evaluation=_largest_evaluation(validation),
            beside=lambda folder: models.tokenizer(plan.model, runtime).save_pretrained(str(folder)),
        )

    def _bounded(self, plan: Plan, runtime: Runtime) -> Job:
        """Return a job of full rows alone, an upper bound on what any batch can be."""

        def missing(*_: object) -> Any:
            raise RuntimeError("a bound has no rows: make the job")

        rows, length = plan.training.batch_size // plan.training.accumulation, plan.data.max_length
        task = self.row(plan.task)
        ids = torch.full((rows, length), 5)
        kind = torch.float32 if task.num_labels == 1 else torch.int64
        labels = torch.zeros(rows, dtype=kind)
        return Job(
            model=missing,
            placement=self.placement(plan, runtime),
            batches=missing,
            loss=_loss,
            tokens=_tokens,
            largest={"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels},
            evaluate=missing,
            facts=DataFacts(train_rows=0, eval_rows={}, official=False),
            main_metric=main_metric(task, plan.data.held_out),
        )

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, task: T, validation: dict[str, encode.Encoded]) -> Scores:
        device = next(model.parameters()).device
        training = model.training
        model.eval()
        found: Measured = {}
        for split, rows in validation.items():
            parts, inverse = encode.evaluation_batches(rows, EVALUATION_BATCH)
            logits = [model(**_inputs(batch, device)).logits.float().cpu() for batch in parts]
            values = self.score(task.name, torch.cat(logits)[inverse], torch.from_numpy(rows.labels))
            found |= {f"{split}/{name}": value for name, value in values.items()}
        model.train(training)
        return Scores(rows={split: len(rows) for split, rows in validation.items()}, metrics=found)


def main_metric(task: TextTask, held_out: bool) -> str:
    """Return the key of the metric that stands for a task."""
    split, metric = task.main_metric.split("/")
    return f"{HELD_OUT if held_out else split}/{metric}"


def splits(task: TextTask, rows_of: Mapping[str, Dataset], plan: DataPlan) -> tuple[Dataset, dict[str, Dataset]]:
    """Return the rows to train on and the evaluated ones by split, held out and capped as the plan says."""
    train = rows_of["train"]
    if plan.held_out:
        rows = min(HELD_OUT_ROWS, int(len(train) * HELD_OUT_FRACTION))
        train, held_out = hold_out(train, rows, SUBSET_SEED)
        evaluated = {HELD_OUT: held_out}
    else:
        evaluated = {name: rows_of[name] for name in task.eval_splits}
    train = cap(train, plan.train_rows, SUBSET_SEED)
    return train, {name: cap(rows, plan.eval_rows, SUBSET_SEED) for name, rows in evaluated.items()}


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def _tokens(batch: Batch) -> int:
    return int(batch["attention_mask"].sum())


def _largest_evaluation(validation: dict[str, encode.Encoded]) -> Batch:
    firsts = [next(encode.evaluation_batches(rows, EVALUATION_BATCH)[0]) for rows in validation.values()]
    return max(firsts, key=lambda batch: batch["input_ids"].numel())


def _inputs(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
