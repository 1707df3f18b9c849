"""The step at the largest batch: tracked for real before a run, and traced without weights to predict it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from baselines.method import set_refresh_gap
from results.schema import Peak
from suites.measure import live, tracker
from suites.measure.ledger import evaluation_peak, phase_peaks
from suites.resolved import Resolved
from suites.run.build import Built, build
from suites.run.loop import Clock, per_layer_of, train_step
from suites.suite import Batch, Job

NEVER = 10**9


@dataclass(frozen=True)
class Tracked:
    """What the tracked pass found at the largest batch; `refresh` is None where nothing is refreshed."""

    gradient_bytes: int
    plain: Peak
    refresh: Peak | None
    phases: dict[str, Peak]


def tracked_pass(built: Built, job: Job, case: Resolved) -> Tracked:
    """Measure gradients, a plain step and a refresh step at the largest batch. Uses up `built`: it is trained on."""
    device = case.runtime.device
    batch = {name: tensor.to(device) for name, tensor in job.largest.items()}
    job.loss(built.model, batch).backward()
    gradient_bytes = live.gradient_bytes(built.model)
    built.optimizer.zero_grad(set_to_none=True)
    step = _step(built, job, case, batch, device)
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
    if (evaluation := evaluation_peak(built, job, case)) is not None:
        phases["evaluation"] = evaluation
    return Tracked(gradient_bytes, tracker.peak_of(plain), refresh, phases)


def prediction_build(job: Job, case: Resolved) -> Callable[[], tuple[nn.Module, Optimizer, Callable[[], None]]]:
    """Return what `predict_step_peak` traces: the plan's step at the largest batch, on a model without weights."""
    cpu = torch.device("cpu")

    def make() -> tuple[nn.Module, Optimizer, Callable[[], None]]:
        built = build(case.skeleton(), job.placement, case, cpu)
        set_refresh_gap(built.optimizer, NEVER)
        return built.model, built.optimizer, _step(built, job, case, job.largest, cpu)

    return make


def _step(built: Built, job: Job, case: Resolved, batch: Batch, device: torch.device) -> Callable[[], None]:
    batches = [batch] * case.training.accumulation
    per_layer = per_layer_of(built.optimizer, case.training)

    def step() -> None:
        train_step(built.model, built.optimizer, batches, job, case.training, Clock(device), per_layer=per_layer)

    return step
