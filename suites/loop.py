"""The one training loop: it runs any job under any optimizer and knows neither suite nor method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from results.schema import CurvePoint, Evaluation, Timing, TrainingPlan
from suites.suite import Batch, Job, Scores

UNTIMED_STEPS = 2
Progress = Callable[[int, float], None]


class DivergedError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


def rate_factor(step: int, plan: TrainingPlan) -> float:
    """Return learning rate over peak learning rate at optimizer step `step` (from 0).

    Warm-up rises linearly and reaches 1 at step `warmup_steps`; then linear or cosine decay to `final_fraction` after
    the last step, or constant.
    """
    if step < plan.warmup_steps:
        return (step + 1) / (plan.warmup_steps + 1)
    if plan.schedule == "constant":
        return 1.0
    done = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    falling = 1.0 - done if plan.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return plan.final_fraction + (1.0 - plan.final_fraction) * falling


def evaluation_steps(plan: TrainingPlan) -> frozenset[int]:
    """Return the optimizer steps (from 1) after which is evaluated: evenly spread, the last step always among them."""
    count = min(plan.evaluations, plan.steps)
    return frozenset(math.ceil(plan.steps * (index + 1) / count) for index in range(count))


class Clock:
    """Sums seconds by phase; waits for the device so that a phase pays for its own work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside the context under `name`."""
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@dataclass
class Outcome:
    """What a run has reached so far; whole also when the run ends early."""

    evaluations: list[Evaluation] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    skipped_steps: int = 0
    refreshes: int = 0
    timed: dict[str, float] = field(default_factory=dict)
    timed_steps: int = 0
    refresh_steps: int = 0
    tokens: int = 0
    evaluation_s: float = 0.0


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    micro_batches: list[Batch],
    job: Job,
    plan: TrainingPlan,
    clock: Clock,
) -> tuple[float, float, bool]:
    """Do one optimizer step over `micro_batches` and return (mean loss, gradient norm before clipping, applied).

    The loss of each micro-batch counts by its rows, so that k micro-batches give the gradient of one batch. A step
    whose loss or gradient norm is not finite changes nothing: it is not applied.
    """
    rows = [len(next(iter(batch.values()))) for batch in micro_batches]
    loss = 0.0
    for batch, count in zip(micro_batches, rows, strict=True):
        share = count / sum(rows)
        with clock.phase("forward"), autocast(model, plan):
            value = job.loss(model, batch)
        with clock.phase("backward"):
            (value * share).backward()
        loss += float(value.detach()) * share
    with clock.phase("optimizer"):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        applied = math.isfinite(loss) and bool(torch.isfinite(norm))
        if applied:
            if plan.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, plan.clip_norm, norm)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss, float(norm), applied


def train(model: nn.Module, optimizer: Optimizer, job: Job, plan: TrainingPlan, out: Outcome, report: Progress) -> None:
    """Run all optimizer steps of `plan`, filling `out` as they go.

    Evaluation is off the clock; the first `UNTIMED_STEPS` steps are too. The learning rate in the curve is the one the
    step used.

    Raises:
        DivergedError: `plan.max_skipped` steps in a row were not finite, or none at all was.
    """
    device = next(model.parameters()).device
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    stream = job.batches(0)
    evaluate_after = evaluation_steps(plan)
    skipped_in_a_row = 0
    for step in range(plan.steps):
        factor = rate_factor(step, plan)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        batches = [_to(next(stream), device) for _ in range(plan.accumulation)]
        clock = Clock(device)
        loss, norm, applied = train_step(model, optimizer, batches, job, plan, clock)
        refreshed = applied and bool(getattr(optimizer, "last_refreshed", False))
        out.curve.append(
            CurvePoint(step=step + 1, loss=loss, learning_rate=plan.learning_rate * factor, gradient_norm=norm)
        )
        out.refreshes += refreshed
        if step >= UNTIMED_STEPS:
            _add_times(out, clock, refreshed, sum(job.tokens(batch) for batch in batches))
        skipped_in_a_row = 0 if applied else skipped_in_a_row + 1
        out.skipped_steps += not applied
        if skipped_in_a_row >= plan.max_skipped:
            raise DivergedError(f"{skipped_in_a_row} steps in a row were not finite, the last one step {step + 1}")
        if step + 1 in evaluate_after:
            _evaluate(model, job, plan, step + 1, out)
        report(step + 1, loss)
    if out.skipped_steps == plan.steps:
        raise DivergedError(f"none of the {plan.steps} steps was finite")


def timing(out: Outcome, wall_s: float) -> Timing:
    """Return the seconds of a run as the record holds them."""
    forward, backward = out.timed.get("forward", 0.0), out.timed.get("backward", 0.0)
    optimizer = out.timed.get("optimizer", 0.0)
    total = forward + backward + optimizer
    return Timing(
        timed_steps=out.timed_steps,
        warmup_steps=UNTIMED_STEPS,
        train_s=total,
        forward_s=forward,
        backward_s=backward,
        optimizer_s=optimizer,
        refresh_s=out.timed.get("refresh") if out.refresh_steps else None,
        refresh_steps=out.refresh_steps,
        tokens=out.tokens,
        tokens_per_s=out.tokens / total if total > 0 else None,
        evaluation_s=out.evaluation_s,
        wall_s=wall_s,
    )


def autocast(model: nn.Module, plan: TrainingPlan) -> AbstractContextManager[object]:
    """Return the precision context of the forward pass."""
    if plan.precision == "bf16-autocast":
        return torch.autocast(next(model.parameters()).device.type, torch.bfloat16)
    return nullcontext()


def _evaluate(model: nn.Module, job: Job, plan: TrainingPlan, step: int, out: Outcome) -> None:
    start = time.perf_counter()
    # Evaluation must not move the dropout stream, or the number of evaluations would change the training.
    with torch.random.fork_rng(devices=_cuda_devices(model)), autocast(model, plan):
        scores: Scores = job.evaluate(model)
    out.evaluation_s += time.perf_counter() - start
    epoch = None if plan.epochs is None else plan.epochs * step / plan.steps
    out.evaluations.append(Evaluation(step=step, epoch=epoch, rows=scores.rows, metrics=scores.metrics))


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    device = next(model.parameters()).device
    return [device] if device.type == "cuda" else []


def _add_times(out: Outcome, clock: Clock, refreshed: bool, tokens: int) -> None:
    for name, seconds in clock.seconds.items():
        out.timed[name] = out.timed.get(name, 0.0) + seconds
    if refreshed:
        out.timed["refresh"] = out.timed.get("refresh", 0.0) + clock.seconds["optimizer"]
    out.refresh_steps += refreshed
    out.timed_steps += 1
    out.tokens += tokens


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
