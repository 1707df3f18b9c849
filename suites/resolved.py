"""A plan with what its names stand for: looked up once, then handed on whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from baselines.method import AdamSettings, Method, MethodConfig, Placement
from baselines.registry import get_method, source_digest
from results.schema import Plan, TrainingPlan
from suites import outside
from suites.config import config_of
from suites.registry import get_suite
from suites.suite import HELD_OUT, Job, Runtime, Suite


@dataclass(frozen=True)
class Resolved:
    """One run's plan, where it runs, and the suite, method and settings that the plan names."""

    plan: Plan
    runtime: Runtime
    suite: Suite[Any]
    method: Method[Any]
    config: MethodConfig

    @property
    def training(self) -> TrainingPlan:
        """The plan's part about optimisation."""
        return self.plan.training

    @property
    def adam(self) -> AdamSettings:
        """The inner AdamW."""
        training = self.training
        return AdamSettings(
            learning_rate=training.learning_rate,
            rest_learning_rate=training.rest_learning_rate,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            state_bits=training.state_bits,
        )

    def job(self) -> Job:
        """Return the run made ready, see `Suite.job`.

        Raises:
            ValueError: a search's run that would evaluate on other rows than held-out ones.
        """
        job = self.suite.job(self.plan, self.runtime)
        if self.plan.purpose == "tuning" and (seen := set(job.facts.eval_rows) - {HELD_OUT}):
            raise ValueError(
                f"suite {self.suite.name!r}: a search looks at held-out train rows alone, not at {min(seen)}"
            )
        return job

    def outline(self) -> Job:
        """Return the job without what needs data, see `Suite.outline`."""
        return self.suite.outline(self.plan, self.runtime)

    def skeleton(self) -> nn.Module:
        """Return the plan's model from its configuration alone, on whatever device or mode is active."""
        return self.suite.skeleton(self.plan, self.runtime)

    def placement(self) -> Placement:
        """Return the layers and parameters that methods work on."""
        return self.suite.placement(self.plan, self.runtime)


def resolved(plan: Plan, runtime: Runtime) -> Resolved:
    """Look up what a plan names.

    Raises:
        ValueError: an unknown suite, method or setting of the method; a method from outside that has changed since; a
            search's plan that does not hold rows out.
    """
    if plan.purpose == "tuning" and not plan.data.held_out:
        raise ValueError(f"{plan.label}: a search looks at held-out train rows alone: held_out must be true")
    outside.register(runtime.outside)
    method = get_method(plan.method)
    if source_digest(plan.method) != plan.method_digest:
        raise ValueError(f"method {plan.method!r}: its source changed since the plan was made; plan again")
    return Resolved(plan, runtime, get_suite(plan.suite), method, config_of(method, plan.method_config))
