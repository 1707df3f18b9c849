"""One run from plan to record: build, attach, certify, track, train, measure; a failure becomes a record too."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn
from torch.optim import Optimizer

from baselines.method import (
    AdamSettings,
    Method,
    Placement,
    Refreshing,
    check_optimizer_covers,
    merges_after,
    rewarm_factor,
    set_refresh_gap,
    trainable,
)
from baselines.registry import get_method
from baselines.shared import targets
from baselines.shared.adamw import adam_state_bytes
from gnlorp import Diverged
from results.schema import Engagement, Layer, Memory, Peak, Plan, Record, Status
from suites.catalogue import catalogue_for
from suites.config import validated
from suites.measure import live, tracker
from suites.measure.environment import derived_seed, environment
from suites.measure.ledger import evaluation_peak, phase_peaks, with_ledger
from suites.models import checkpoint_activations
from suites.registry import get_suite
from suites.run import resume
from suites.run.loop import Clock, DivergedError, Hooks, Outcome, Progress, per_layer_of, timing, train, train_step
from suites.suite import Job, Runtime

NEVER = 10**9


@dataclass
class Built:
    """A model with its method attached and its optimizer."""

    model: nn.Module
    optimizer: Optimizer
    layers: list[Layer]
    dense_state_bytes: int
    formula_state_bytes: int


def adam_settings(plan: Plan) -> AdamSettings:
    """Return the inner AdamW of a plan."""
    train_plan = plan.training
    return AdamSettings(
        learning_rate=train_plan.learning_rate,
        betas=train_plan.betas,
        eps=train_plan.eps,
        weight_decay=train_plan.weight_decay,
        state_bits=train_plan.state_bits,
    )


def build(model: nn.Module, placement: Placement, plan: Plan, device: torch.device) -> Built:
    """Attach the plan's method to a fresh model and make its optimizer.

    Raises:
        ValueError: settings that do not fit the model.
        RuntimeError: the optimizer does not hold exactly the trainable parameters.
    """
    method = get_method(plan.method)
    config = validated(method.config_type, plan.method_config, f"{plan.method} setting")
    if plan.training.checkpointing:
        checkpoint_activations(model)
    if plan.training.precision == "bf16":
        model = model.to(torch.bfloat16)
    shapes = targets.shapes(model, placement.targets)
    dense = live.dense_state_bytes(parameter.numel() for parameter in model.parameters())
    torch.manual_seed(derived_seed(plan.seed, "method"))
    method.attach(model, placement, config)
    model = model.to(device)
    optimizer = method.optimizer(model, placement, adam_settings(plan), config)
    check_optimizer_covers(model, optimizer)
    layers = [
        Layer(name=name, shape=shape, rank=ranks.rank, projection_rank=ranks.projection_rank)
        for name, shape in shapes.items()
        for ranks in [method.ranks(shape, config)]
    ]
    return Built(model, optimizer, layers, dense, formula_state_bytes(method, config, model, layers, plan))


def formula_state_bytes(
    method: Method[Any], config: BaseModel, model: nn.Module, layers: list[Layer], plan: Plan
) -> int:
    """Return the state bytes by formula: the method's own for its layers, Adam's two moments for everything else."""
    bits = plan.training.state_bits
    inside = tuple(f"{layer.name}." for layer in layers)
    rest = [
        parameter.numel()
        for name, parameter in trainable(model).items()
        if not name.startswith(inside) or name.endswith(".bias")
    ]
    return sum(method.layer_state_bytes(layer.shape, config, bits) for layer in layers) + sum(
        adam_state_bytes(elements, bits) for elements in rest
    )


def prediction_build(
    job: Job, plan: Plan, runtime: Runtime
) -> Callable[[], tuple[nn.Module, Optimizer, Callable[[], None]]]:
    """Return what `predict_step_peak` traces: the plan's step at the largest batch, on a model without weights."""
    suite = get_suite(plan.suite)
    batches = [job.largest] * plan.training.accumulation
    cpu = torch.device("cpu")

    def make() -> tuple[nn.Module, Optimizer, Callable[[], None]]:
        built = build(suite.skeleton(plan, runtime), job.placement, plan, cpu)
        set_refresh_gap(built.optimizer, NEVER)
        per_layer = per_layer_of(built.optimizer, plan.training)

        def step() -> None:
            train_step(built.model, built.optimizer, batches, job, plan.training, Clock(cpu), per_layer=per_layer)

        return built.model, built.optimizer, step

    return make


@dataclass(frozen=True)
class Tracked:
    """What the tracked pass found at the largest batch; `refresh` is None where nothing is refreshed."""

    gradient_bytes: int
    plain: Peak
    refresh: Peak | None
    phases: dict[str, Peak]


def tracked_pass(built: Built, job: Job, plan: Plan, device: torch.device) -> Tracked:
    """Measure gradients, a plain step and a refresh step at the largest batch. Uses up `built`: it is trained on."""
    batch = {name: tensor.to(device) for name, tensor in job.largest.items()}
    batches = [batch] * plan.training.accumulation
    job.loss(built.model, batch).backward()
    gradient_bytes = live.gradient_bytes(built.model)
    built.optimizer.zero_grad(set_to_none=True)
    per_layer = per_layer_of(built.optimizer, plan.training)

    def step() -> None:
        train_step(built.model, built.optimizer, batches, job, plan.training, Clock(device), per_layer=per_layer)

    # Twice: a factor that starts at zero leaves its partner without a gradient in the first step, so that the
    # partner's basis and moments only come with the second.
    step()
    step()
    set_refresh_gap(built.optimizer, NEVER)
    plain = tracker.track(built.model, built.optimizer, step)
    phases = phase_peaks(plain)
    refresh = None
    if set_refresh_gap(built.optimizer, 1):
        trace = tracker.track(built.model, built.optimizer, step)
        refresh = tracker.peak_of(trace)
        phases["refresh"] = tracker.peak_of(trace, "optimizer")
    if (evaluation := evaluation_peak(built.model, built.optimizer, job, plan, device)) is not None:
        phases["evaluation"] = evaluation
    return Tracked(gradient_bytes, tracker.peak_of(plain), refresh, phases)


def check_fit(plan: Plan, runtime: Runtime) -> None:
    """Attach the plan's method to its model without weights, so that settings that do not fit are found at once.

    Raises:
        ValueError: the method's settings or targets do not fit the model, or the model cannot be had.
    """
    method = get_method(plan.method)
    config = validated(method.config_type, plan.method_config, f"{plan.method} setting")
    suite = get_suite(plan.suite)
    with torch.device("meta"):
        method.attach(suite.skeleton(plan, runtime), suite.placement(plan, runtime), config)


def execute(
    plan: Plan,
    runtime: Runtime,
    predicted_peak_bytes: int | None,
    report: Progress,
    checkpoints: Path | None = None,
) -> Record:
    """Run `plan` and return its record, whatever happens: a failure is a status with its text.

    Goes on from the newest whole checkpoint in the folder `checkpoints`, and writes its own there; they go away once
    the run has a final record.
    """
    started = _now()
    start = time.perf_counter()
    rss_start = live.rss_bytes()
    out = Outcome()
    parts: dict[str, Any] = {}
    status: Status = "ok"
    error: str | None = None
    try:
        _execute(plan, runtime, predicted_peak_bytes, rss_start, report, checkpoints, out, parts)
    except KeyboardInterrupt:
        status, error = "interrupted", "interrupted by the user"
    except (DivergedError, Diverged) as problem:
        status, error = "diverged", str(problem)
    except Exception as problem:  # noqa: BLE001  a run that fails is a result; the others go on
        status = "out_of_memory" if is_out_of_memory(problem) else "failed"
        error = "".join(traceback.format_exception_only(problem)).strip()
        if status == "failed" and not isinstance(problem, ValueError):
            error += "\n" + "".join(traceback.format_tb(problem.__traceback__)[-3:])
    wall = time.perf_counter() - start
    return Record(
        plan=plan,
        plan_hash=plan.hash(),
        status=status,
        error=error,
        started_at=started,
        finished_at=_now(),
        environment=environment(runtime.device, runtime.threads, runtime.workers),
        catalogue=catalogue_for(plan),
        timing=timing(out, wall) if out.timed_steps else None,
        evaluations=out.evaluations,
        curve=out.curve,
        skipped_steps=out.skipped_steps,
        resumed_at=out.resumed_at,
        **parts,
    )


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that memory ran out (the device's, or the allocator's on the CPU)."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(problem, RuntimeError) and "DefaultCPUAllocator" in str(problem)


def _execute(
    plan: Plan,
    runtime: Runtime,
    predicted: int | None,
    rss_start: int,
    report: Progress,
    checkpoints: Path | None,
    out: Outcome,
    parts: dict[str, Any],
) -> None:
    device = runtime.device
    devices = live.DevicePeaks(device)
    job = get_suite(plan.suite).job(plan, runtime)
    parts["data"], parts["main_metric"] = job.facts, job.main_metric
    first, load = tracker.track_load(
        lambda: build(job.model(), job.placement, plan, device), lambda made: (made.model, made.optimizer), device.type
    )
    tracked = tracked_pass(first, job, plan, device)
    del first
    with devices.phase("load"):
        built = build(job.model(), job.placement, plan, device)

    def watched(step: int, loss: float) -> None:
        # Early, so that no time goes into a method without effect. A skipped step has no state yet to certify, and a
        # factor that starts at zero gives its partner state only in the second one.
        if 1 <= step - out.skipped_steps <= 2:
            parts["engagement"] = _certificate(built, out)
            _check_certificate(parts["engagement"], built, plan)
        report(step, loss)

    torch.manual_seed(derived_seed(plan.seed, "dropout") + runtime.group.rank)
    saver = resume.Saver(checkpoints, plan, runtime, built.model, built.optimizer, out)
    saver.load()
    hooks = _hooks(built, plan, device, watched, saver.save)
    with devices.phase("train"):
        train(built.model, built.optimizer, job, plan.training, out, hooks, runtime.group)
    parts["final_digest"] = resume.digest(built.model, built.optimizer)
    parts["engagement"] = _certificate(built, out)
    _check_certificate(parts["engagement"], built, plan)
    parts["memory"] = Memory(
        weight_bytes=live.weight_bytes(built.model),
        trainable_bytes=live.trainable_bytes(built.model),
        buffer_bytes=live.buffer_bytes(built.model),
        gradient_bytes=tracked.gradient_bytes,
        state_bytes=live.state_bytes(built.optimizer, built.model),
        basis_bytes=live.basis_bytes(built.optimizer),
        formula_state_bytes=built.formula_state_bytes,
        predicted_peak_bytes=predicted,
        step_peak=tracked.plain,
        refresh_peak=tracked.refresh,
        rss_peak_bytes=live.rss_peak_bytes(),
        rss_start_bytes=rss_start,
        cuda_allocated_bytes=devices.allocated_bytes,
        cuda_reserved_bytes=devices.reserved_bytes,
    )
    parts["memory"] = with_ledger(parts["memory"], built, job, plan, runtime, {"load": load, **tracked.phases})


def _hooks(built: Built, plan: Plan, device: torch.device, report: Progress, save: Callable[[int], None]) -> Hooks:
    method = get_method(plan.method)
    config = validated(method.config_type, plan.method_config, f"{plan.method} setting")

    def restart(step: int) -> None:
        if merges_after(config, step) and step < plan.training.steps:
            assert method.restart is not None
            generator = torch.Generator(device).manual_seed(derived_seed(plan.seed, f"restart {step}"))
            method.restart(built.model, built.optimizer, generator)

    return Hooks(report, lambda step: rewarm_factor(config, step), restart, save)


def _certificate(built: Built, out: Outcome) -> Engagement:
    counts = [parameter.numel() for parameter in built.model.parameters()]
    refreshes = out.refreshes if isinstance(built.optimizer, Refreshing) else None
    return live.engagement(
        built.layers,
        sum(parameter.numel() for parameter in trainable(built.model).values()),
        sum(counts),
        built.optimizer,
        built.dense_state_bytes,
        refreshes,
    )


def _check_certificate(certificate: Engagement, built: Built, plan: Plan) -> None:
    method = get_method(plan.method)
    live.check_engagement(certificate, built.model, method.title, method.saves_state)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
