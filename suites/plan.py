"""From a request to plans: which runs there are, which are missing, what they will cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baselines.method import Rates
from baselines.registry import checked_name, default_methods, get_method, methods, source_digest
from results.schema import Plan, Record, TrainingPlan
from results.store import FINAL
from suites.config import (
    Layer,
    Settings,
    check_table,
    default_rank,
    listed,
    load_profile,
    method_config,
    profile_path,
    resolve,
)
from suites.registry import get_suite
from suites.run.per_layer import check_per_layer
from suites.suite import Runtime, Suite
from suites.sweep import RANK, Sweep, check_effect, variants

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"
"""The committed records."""
LARGEST_SEED = 2**63 - 1
"""Frames, random generators and JSON readers hold 64 bits with a sign."""
ROUNDING = 1e-12
"""Share of a product of floats that may be rounding alone."""


@dataclass(frozen=True)
class Request:
    """What is asked for; `overrides` are settings that beat the profile's, `sweep` those under several values.

    `rank_by_model`: nobody asked for the rank; a model that is swept has the profile's for it.
    """

    suite: str
    profile: str
    rank: int
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    overrides: tuple[tuple[str, Any], ...] = ()
    sweep: tuple[Sweep, ...] = ()
    rank_by_model: bool = False


@dataclass(frozen=True)
class Comparison:
    """A request with its suite and the layers of its settings, weakest first: what its runs are resolved from."""

    request: Request
    suite: Suite[Any]
    layers: tuple[Layer, ...]

    def cells(self) -> list[tuple[str, str]]:
        """Return (task, method) of every cell, tasks outermost."""
        tasks = self.request.tasks or listed(self.layers, "tasks") or self.suite.tasks
        names = self.request.methods or listed(self.layers, "methods") or default_methods()
        return [(task, method) for task in tasks for method in names]

    def settings(self, task: str, method: str, *more: Layer) -> Settings:
        """Return the settings of a cell, with `more` layers on top."""
        found: Settings = resolve(self.suite.settings, (*self.layers, *more), task, method)
        return found

    def plan(self, task: str, method: str, runtime: Runtime, *more: Layer) -> Plan:
        """Resolve one run, at the request's first seed, to numbers; `more` are layers on top of the request's.

        Raises:
            ValueError: a value outside its rule; no learning rate.
        """
        settings = self.settings(task, method, *more)
        if settings.learning_rate is None:
            settings = settings.model_copy(update={"learning_rate": self.rates(method).usual})
        return Plan(
            suite=self.suite.name,
            task=task,
            profile=self.request.profile,
            method=method,
            method_config=method_config(method, self.request.rank, settings.config).settings(),
            targets=settings.targets,
            seed=self.request.seeds[0],
            model=self.suite.model(settings, runtime),
            data=self.suite.data(task, settings, runtime).model_copy(update={"held_out": settings.held_out}),
            training=training_plan(settings, self.suite.train_rows(task, settings, runtime)),
            method_digest=source_digest(method),
        )

    def rates(self, method: str, missing: str = "learning_rate = ...") -> Rates:
        """Return what the method says of its learning rates in the suite's kind of work.

        Raises:
            ValueError: it says nothing; the text has the line that the profile (`missing`) or the method lacks.
        """
        found = get_method(method).rates.get(self.suite.work)
        if found is None:
            name, profile = missing.partition(" = ")[0], self.request.profile
            raise ValueError(
                f"method {method!r}: profile {profile!r} gives it no {name} for suite {self.suite.name!r}, and its "
                f"METHOD no rates for {self.suite.work}: add [{self.suite.name}.method.{method}] with {missing} to "
                f"suites/profiles/{profile}.toml, or rates={{{self.suite.work!r}: Rates.around(..., source)}} to "
                f"baselines/{method}.py"
            )
        return found

    def notes(self) -> list[str]:
        """Return a line for every method whose learning rate the profile leaves to the method."""
        found = []
        for task, method in self.cells():
            if self.settings(task, method).learning_rate is None:
                rates = self.rates(method)
                found.append(
                    f"{get_method(method).title}: profile {self.request.profile} gives it no learning_rate; the usual "
                    f"one for {self.suite.work} is {rates.usual:g} ({rates.source})"
                )
        return list(dict.fromkeys(found))


def comparison(request: Request, tuned: bool = True) -> Comparison:
    """Return a request made ready; without `tuned` an earlier choice of `tune` is left out.

    Raises:
        ValueError: an unknown name, a rank below 1, a seed outside 0 to `LARGEST_SEED`, a profile that is not of the
            suite's settings.
    """
    assert not request.sweep, "a request with sweeps is several comparisons: see `sweep.variants`"
    suite = get_suite(request.suite)
    for task in request.tasks:
        checked_name(task, suite.tasks, "task")
    if not request.tasks and not suite.tasks:
        raise ValueError(f"suite {suite.name!r} has no task of its own: give one with --task path/to/task.toml")
    for name in request.methods:
        checked_name(name, methods(), "method")
    if request.rank < 1:
        raise ValueError(f"rank {request.rank}: must be at least 1 (nearest allowed value: 1)")
    for seed in request.seeds:
        if not 0 <= seed <= LARGEST_SEED:
            rule, near = ("least", 0) if seed < 0 else ("most", LARGEST_SEED)
            raise ValueError(f"seed {seed}: must be at {rule} {near} (nearest allowed value: {near})")
    layers = load_profile(request.profile, request.suite, request.rank, tuned)
    try:
        for layer in layers:
            check_table(layer, suite.settings, suite.tasks, "the profile")
    except ValueError as error:
        raise ValueError(f"{profile_path(request.profile).name}, [{request.suite}]: {error}") from error
    return Comparison(request, suite, (*layers, dict(request.overrides)))


def combinations(request: Request) -> Iterator[Request]:
    """Yield a request for every combination of the swept values, as `variants` does, each at its own rank.

    Raises:
        ValueError: a rank that is no whole number.
    """
    for each in variants(request):
        if request.rank_by_model and RANK not in dict(request.sweep):
            model = dict(each.overrides).get("model")
            each = replace(each, rank=default_rank(each.profile, each.suite, model))
        yield each


def make_plans(request: Request, runtime: Runtime) -> list[Plan]:
    """Return every run of a request: seed by seed, then tasks, methods and swept values: a cut-off leaves whole
    comparisons. A run that no swept setting changes is there once.

    Raises:
        ValueError: an unknown name or a value outside its rule, named; a sweep that changes no run; `equal` for some
            runs alone.
    """
    asked = [comparison(each) for each in combinations(request)]
    equal = _equal(asked)
    cells = [[each.plan(task, method, runtime) for each in asked] for task, method in asked[0].cells()]
    check_effect(request.sweep, [[row[at].hash() for row in cells] for at in range(len(asked))])
    once = list({plan.hash(): plan for row in cells for plan in row}.values())
    if equal == "memory":
        from suites.equal import with_equal_memory

        once = with_equal_memory(once, runtime)
    return [plan.model_copy(update={"seed": seed}) for seed in request.seeds for plan in once]


def _equal(asked: Sequence[Comparison]) -> str:
    """Return what is equal in a comparison beside steps, which no run has for itself."""
    found = list(dict.fromkeys(each.settings(*cell).equal for each in asked for cell in each.cells()))
    if len(found) > 1:
        raise ValueError(
            f"equal: is {' for some runs and '.join(found)} for others; it is of the whole comparison (nearest allowed "
            "value: --set equal=memory)"
        )
    return found[0]


def training_plan(settings: Settings, train_rows: int) -> TrainingPlan:
    """Resolve steps, epochs and warm-up to numbers; the learning rate is one already.

    Raises:
        ValueError: steps and epochs both or neither given; a batch that the accumulation does not divide; per-layer
            updates with clipping by the common norm.
    """
    _check_training(settings)
    per_epoch = math.ceil(train_rows / settings.batch_size)
    if settings.epochs is None:
        assert settings.steps is not None
        steps = settings.steps
    else:
        # 100 x 1.1 is 110.00000000000001, and no step more.
        steps = math.ceil(per_epoch * settings.epochs * (1 - ROUNDING))
        steps = min(steps, settings.max_steps or steps)
    # What setting and plan call by one name is handed on as it is.
    kept = {name: value for name, value in settings if name in TrainingPlan.model_fields}
    resolved = {
        "steps": steps,
        "epochs": steps / per_epoch,
        "warmup_steps": round(settings.warmup_fraction * steps),
        "clip_norm": settings.clip_norm or None,
        "evaluations": min(settings.evaluations, steps),
    }
    return TrainingPlan(**kept | resolved)


def _check_training(settings: Settings) -> None:
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
        check_per_layer(settings.accumulation, settings.clip_norm, settings.clip_scope)
    if settings.bf16_updates != "nearest" and settings.precision != "bf16":
        raise ValueError(
            f"bf16_updates {settings.bf16_updates!r} with precision {settings.precision!r}: no weight is in bf16 then "
            "(nearest allowed value: nearest, or precision = 'bf16')"
        )
    if settings.bf16_products != "native" and (settings.precision != "bf16" or settings.compile):
        raise ValueError(
            f"bf16_products {settings.bf16_products!r} with precision {settings.precision!r}, compile = "
            f"{str(settings.compile).lower()}: for weights in bf16, run eagerly (nearest allowed value: native)"
        )


def missing(plans: Sequence[Plan], records: Iterable[Record]) -> list[Plan]:
    """Return the plans without a final record (ok, diverged and out_of_memory are final; the others run again)."""
    done = {record.plan_hash for record in records if record.status in FINAL}
    return [plan for plan in plans if plan.hash() not in done]


def expected_seconds(plans: Sequence[Plan], records: Iterable[Record], workers: int) -> float | None:
    """Return how long `plans` should take: per run the median wall time of like runs, scaled by the rows trained on.

    Like runs have the same suite, profile, task, method, model, length, precision, checkpointing and recomputed parts:
    what was measured in bf16 says nothing of fp32. None if there is no like run for any of them.
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
    settings = (plan.data.max_length, training.precision, training.checkpointing, training.recompute)
    return (plan.suite, plan.profile, plan.task, plan.method, plan.model.name, *settings)


def _rows(plan: Plan) -> int:
    return plan.training.steps * plan.training.batch_size
