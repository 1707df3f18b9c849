"""The contract of a suite: it turns a plan into a job; the loop runs any job without knowing the suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from baselines.method import Placement, Work
from results.catalogue import SuiteEntry
from results.schema import DataFacts, DataPlan, ModelPlan, Plan
from suites.config import Settings
from suites.run.distributed import Group

Batch = Mapping[str, Tensor]
HELD_OUT = "held_out"
"""What the split of train rows that a search evaluates on is called in every suite."""
S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Outside:
    """Files that bring methods, as `path.py:NAME`, and tasks."""

    methods: tuple[str, ...] = ()
    tasks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Beside:
    """What a run leaves beside its record, in `folder`: what trackers keep, and its model merged or as adapters.

    `repository`: of the hub, for the models of a whole launch.
    """

    folder: Path | None = None
    trackers: tuple[str, ...] = ()
    model: Literal["merged", "adapters"] | None = None
    repository: str | None = None


@dataclass(frozen=True)
class Runtime:
    """What a run needs to know of its machine; nothing here changes a result, so nothing here is in the plan.

    `checkpoint_steps`: optimizer steps between checkpoints; None: one every `checkpoint_s` seconds.
    `dry`: nothing will be run, so nothing is downloaded to check it.
    `outside`: files of methods and tasks that are no part of the repository, for processes to know them by name.
    `visible_devices`: what CUDA_VISIBLE_DEVICES is in the process of a run; None: as the fork server's.
    `lock_wait_s`: how long a run waits for a process of the same run that was just killed; None: `LOCK_WAIT_S`.
    """

    device: torch.device
    data_dir: Path | None = None
    model_dir: Path | None = None
    threads: int = 1
    workers: int = 1
    offline: bool = False
    group: Group = Group()
    checkpoint_steps: int | None = None
    checkpoint_s: float = 300.0
    tokenizer: Path | None = None
    dry: bool = False
    outside: Outside = Outside()
    beside: Beside = Beside()
    visible_devices: str | None = None
    lock_wait_s: float | None = None


@dataclass(frozen=True)
class Scores:
    """Result of one evaluation: rows per split, and metrics under "split/metric"."""

    rows: dict[str, int]
    metrics: dict[str, float | None]


R = TypeVar("R")


class TrainAlone(Mapping[str, R]):
    """The splits of a task as a search may see them: asking for any but train is refused."""

    def __init__(self, splits: Mapping[str, R]) -> None:
        self._train = splits["train"]

    def __getitem__(self, split: str) -> R:
        if split != "train":
            raise ValueError(f"split {split!r}: a search never looks at it, only at train (nearest allowed: train)")
        return self._train

    def __iter__(self) -> Iterator[str]:
        return iter(("train",))

    def __len__(self) -> int:
        return 1


def rows(batch: Batch) -> int:
    """Return the rows of a micro-batch."""
    return len(next(iter(batch.values())))


@dataclass(frozen=True)
class Job:
    """One run made ready.

    Attributes:
        model: () -> a fresh model, always the same one, in fp32 on the CPU, no method attached yet.
        placement: the layers and parameters that methods work on.
        batches: start -> endless iterator of micro-batches from the start-th on: a pure function of plan and start.
        loss: (model, batch) -> scalar loss, the mean over the micro-batch.
        tokens: batch -> tokens that are not padding.
        largest: the micro-batch of the largest shape that `batches` can yield (for memory tracking).
        evaluate: model -> scores; leaves the model in training mode as it found it.
        facts: what was loaded.
        main_metric: the key of `Scores.metrics` that stands for the task.
        weight: batch -> how much its mean loss counts among the micro-batches of a step.
        evaluation: the largest batch that `evaluate` gives the model (for memory tracking); None: not said.
        beside: folder -> None. Writes what a saved model needs beside its weights, such as its tokenizer.
    """

    model: Callable[[], nn.Module]
    placement: Placement
    batches: Callable[[int], Iterator[Batch]]
    loss: Callable[[nn.Module, Batch], Tensor]
    tokens: Callable[[Batch], int]
    largest: Batch
    evaluate: Callable[[nn.Module], Scores]
    facts: DataFacts
    main_metric: str
    weight: Callable[[Batch], int] = rows
    evaluation: Batch | None = None
    beside: Callable[[Path], object] = lambda folder: None


class Suite(Protocol[S]):
    """A family of tasks.

    Attributes:
        entry: what readers of its records must know: titles, tasks, metrics.
        work: the kind of work that methods know their usual learning rates for.
        settings: what a run of it can be told; profiles and command line are checked against it.
        data: names what a task's rows are, for the plan.
        train_rows: counts them.
        verify: loads the data of a plan and checks it, so that bad input is found before the first run; returns what
            should be known of it, a line each.
        model: names the network that settings ask for, without loading it.
        outline: the job with placement, loss, token count and largest batch alone, for what needs no data; a suite
            whose batches vary in shape makes the whole job.
        skeleton: the plan's model from its configuration alone, on whatever device or mode is active.
        placement: the layers and parameters that methods work on in that model.
        job: makes one run ready.

    Raises:
        ValueError: from all of them, when the data or model cannot be had or is not what the plan says.
    """

    name: str
    tasks: tuple[str, ...]
    entry: SuiteEntry
    work: Work
    settings: type[S]

    def train_rows(self, task: str, settings: S, runtime: Runtime) -> int: ...

    def data(self, task: str, settings: S, runtime: Runtime) -> DataPlan: ...

    def model(self, settings: S, runtime: Runtime) -> ModelPlan: ...

    def verify(self, plan: Plan, runtime: Runtime) -> list[str]: ...

    def skeleton(self, plan: Plan, runtime: Runtime) -> nn.Module: ...

    def placement(self, plan: Plan, runtime: Runtime) -> Placement: ...

    def outline(self, plan: Plan, runtime: Runtime) -> Job: ...

    def job(self, plan: Plan, runtime: Runtime) -> Job: ...
