"""Cycle: a LLaMA learns to count in circles; about as small as a suite can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.method import Placement, Work
from baselines.shared import targets
from results.catalogue import MetricEntry, SuiteEntry, TaskEntry
from results.schema import DataFacts, DataPlan, ModelPlan, Plan
from suites.c4 import llama
from suites.config import Settings
from suites.measure.environment import derived_seed
from suites.suite import Batch, Job, Runtime, Scores

WORDS = 16


@dataclass(frozen=True)
class CycleSuite:
    """The suite."""

    name: str = "cycle"
    tasks: tuple[str, ...] = ("circles",)
    entry: SuiteEntry = SuiteEntry(
        name="cycle",
        title="Counting in circles",
        metrics=[MetricEntry(name="loss", title="loss", better="lower", unit="nats")],
        tasks=[TaskEntry(name="circles", title="Count to sixteen", main_metric="validation/loss", metrics=["loss"])],
    )
    work: Work = "pre-training"
    settings: type[Settings] = Settings

    def train_rows(self, task: str, settings: Settings, runtime: Runtime) -> int:
        return 1000

    def data(self, task: str, settings: Settings, runtime: Runtime) -> DataPlan:
        return DataPlan(source="micro", name=task, max_length=settings.max_length)

    def model(self, settings: Settings, runtime: Runtime) -> ModelPlan:
        return ModelPlan(name=settings.model, source="config", vocabulary=WORDS)

    def verify(self, plan: Plan, runtime: Runtime) -> list[str]:
        return []

    def skeleton(self, plan: Plan, runtime: Runtime) -> nn.Module:
        return llama.network(plan.model)

    def placement(self, plan: Plan, runtime: Runtime) -> Placement:
        with torch.device("meta"):
            return targets.place(self.skeleton(plan, runtime), plan.targets, train_rest=True)

    def outline(self, plan: Plan, runtime: Runtime) -> Job:
        return self.job(plan, runtime)

    def job(self, plan: Plan, runtime: Runtime) -> Job:
        size = plan.training.batch_size // plan.training.accumulation

        def rows(seed: int) -> Batch:
            starts = torch.randint(WORDS, (size, 1), generator=torch.Generator().manual_seed(seed))
            return {"input_ids": (starts + torch.arange(plan.data.max_length)) % WORDS}

        def batches(start: int) -> Iterator[Batch]:
            while True:
                yield rows(derived_seed(plan.seed, f"batch {start}"))
                start += 1

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            found: Tensor = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
            return found

        @torch.no_grad()
        def evaluate(model: nn.Module) -> Scores:
            return Scores({"validation": size}, {"validation/loss": float(loss(model, rows(0)))})

        return Job(
            model=lambda: llama.network(plan.model, derived_seed(plan.seed, "model")),
            placement=self.placement(plan, runtime),
            batches=batches,
            loss=loss,
            tokens=lambda batch: batch["input_ids"].numel(),
            largest=rows(0),
            evaluate=evaluate,
            facts=DataFacts(train_rows=1000, eval_rows={"validation": size}, official=False),
            main_metric="validation/loss",
        )


SUITE = CycleSuite()
