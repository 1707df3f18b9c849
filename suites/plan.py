"""From a request to plans: which runs there are, which are missing, what they will cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.registry import checked_name, methods
from results.schema import Plan, Record, TrainingPlan
from results.store import FINAL
from suites.config import Settings, load_profile, method_config, resolve
from suites.registry import get_suite
from suites.run.per_layer import check_per_layer
from suites.suite import Runtime

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"
"""The committed records."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for; `overrides` are settings that beat the profile's."""

    suite: str
    profile: str
    rank: int
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    overrides: tuple[tuple[str, Any], ...] = ()


def make_plans(request: Request, runtime: Runtime) -> list[Plan]:
    """Return every run of a request: seed by seed, then tasks, then methods: a cut-off leaves whole comparisons.

    Raises:
        ValueError: an unknown name or a value outside its rule, named.
    """
    for seed in request.seeds:
        if seed < 0:
            raise ValueError(f"seed {seed}: must be at least 0 (nearest allowed value: 0)")
    layers = [*load_profile(request.profile, request.suite, request.rank), dict(request.overrides)]
    cells = [make_plan(request, layers, task, method, runtime) for task, method in request_cells(request)]
    return [plan.model_copy(update={"seed": seed}) for seed in request.seeds for plan in cells]


def request_cells(request: Request) -> list[tuple[str, str]]:
    """Return (task, method) for every cell of a request, tasks outermost.

    Raises:
        ValueError: an unknown suite, task or method, or a rank below 1.
    """
    suite = get_suite(request.suite)
    for task in request.tasks:
        checked_name(task, suite.tasks, "task")
    for name in request.methods:
        checked_name(name, methods(), "method")
    if request.rank < 1:
        raise ValueError(f"rank {request.rank}: must be at least 1 (nearest allowed value: 1)")
    return [(task, method) for task in request.tasks or suite.tasks for method in request.methods or methods()]


def make_plan(request: Request, layers: list[dict[str, Any]], task: str, method: str, runtime: Runtime) -> Plan:
    """Resolve one run, at the request's first seed, to numbers."""
    settings = resolve(layers, task, method)
    suite = get_suite(request.suite)
    return Plan(
        suite=request.suite,
        task=task,
        profile=request.profile,
        method=method,
        method_config=method_config(method, request.rank, settings.config).settings(),
        targets=settings.targets,
        seed=request.seeds[0],
        model=suite.model(settings, runtime),
        data=suite.data(task, settings, runtime),
        training=training_plan(settings, suite.train_rows(task, settings, runtime)),
    )


def training_plan(settings: Settings, train_rows: int) -> TrainingPlan:
    """Resolve steps, epochs and warm-up to numbers.

    Raises:
        ValueError: steps and epochs both or neither given; a batch that the accumulation does not divide; per-layer
            updates with accumulation or clipping.
    """
    if (settings.steps is None) == (settings.epochs is None):
        raise ValueError("steps and epochs: give exactly one of the two (--steps N or --epochs X)")
    if settings.batch_size % settings.accumulation:
        divisors = (n for n in range(1, settings.batch_size + 1) if settings.batch_size % n == 0)
        near = min(divisors, key=lambda n: (abs(n - settings.accumulation), n))
        raise ValueError(
            f"accumulation {settings.accumulation}: must divide batch_size {settings.batch_size} "
            f"(nearest allowed value: {near})"
        )
    if settings.per_layer:
        check_per_layer(settings.accumulation, settings.clip_norm)
    per_epoch = math.ceil(train_rows / settings.batch_size)
    if settings.epochs is None:
        assert settings.steps is not None
        steps = settings.steps
    else:
        steps = math.ceil(per_epoch * settings.epochs)
        steps = min(steps, settings.max_steps or steps)
    return TrainingPlan(
        steps=steps,
        epochs=steps / per_epoch,
        batch_size=settings.batch_size,
        accumulation=settings.accumulation,
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        final_fraction=settings.final_fraction,
        warmup_steps=round(settings.warmup_fraction * steps),
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm or None,
        precision=settings.precision,
        state_bits=settings.state_bits,
        per_layer=settings.per_layer,
        checkpointing=settings.checkpointing,
        evaluations=min(settings.evaluations, steps),
    )


def missing(plans: Sequence[Plan], records: Iterable[Record]) -> list[Plan]:
    """Return the plans without a final record (ok, diverged and out_of_memory are final; the others run again)."""
    done = {record.plan_hash for record in records if record.status in FINAL}
    return [plan for plan in plans if plan.hash() not in done]


def expected_seconds(plans: Sequence[Plan], records: Iterable[Record], workers: int) -> float | None:
    """Return how long `plans` should take: per run the median wall time of like runs, scaled by the rows trained on.

    Like runs have the same suite, profile, task, method, model, length, precision and checkpointing: what was measured
    in bf16 says nothing of fp32. None if there is no like run for any of them.
    """
    per_row: dict[tuple[object, ...], list[float]] = {}
    for record in records:
        if record.status == "ok" and record.timing is not None:
            per_row.setdefault(_like(record.plan), []).append(record.timing.wall_s / _rows(record.plan))
    known = [statistics.median(per_row[_like(plan)]) * _rows(plan) for plan in plans if _like(plan) in per_row]
    if not known:
        return None
    return sum(known) / len(known) * len(plans) / workers


def _like(plan: Plan) -> tuple[object, ...]:
    training = plan.training
    settings = (plan.data.max_length, training.precision, training.checkpointing)
    return (plan.suite, plan.profile, plan.task, plan.method, plan.model.name, *settings)


def _rows(plan: Plan) -> int:
    return plan.training.steps * plan.training.batch_size
