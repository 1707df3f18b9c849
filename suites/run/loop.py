"""The one training loop: it runs any job under any optimizer and knows neither suite nor method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import refreshed
from results.schema import CurvePoint, Evaluation, Timing, TrainingPlan
from suites.run.clock import Clock, Timed, read_together, reads_late
from suites.run.distributed import ALONE, Group
from suites.run.feed import ahead, to_device
from suites.run.per_layer import PerLayer, clip_alone_
from suites.run.rounding import take_step
from suites.run.shard import clip_, sum_whole_, total_norm
from suites.suite import Batch, Job, Scores

UNTIMED_STEPS = 2
CURVE_POINTS, CURVE_START = 5000, 500
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


def in_curve(step: int, steps: int) -> bool:
    """Whether a step (from 1) is in the curve of a run of `steps`: all of a run up to `CURVE_POINTS`.

    Of a longer one the first `CURVE_START`, and evenly spread ones of the rest with the last among them: a record stays
    under a megabyte.
    """
    if steps <= CURVE_POINTS or step <= CURVE_START or step == steps:
        return True
    return step % math.ceil((steps - CURVE_START) / (CURVE_POINTS - CURVE_START)) == 0


@dataclass
class Outcome:
    """What a run has reached so far; whole also when the run ends early, and what a resumed run starts from.

    `wall_s`: of the processes before this one, up to the checkpoint that it goes on from.
    """

    steps_done: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    refreshes: int = 0
    timed: dict[str, float] = field(default_factory=dict)
    timed_steps: int = 0
    refresh_steps: int = 0
    tokens: int = 0
    evaluation_s: float = 0.0
    wall_s: float = 0.0
    resumed_at: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Hooks:
    """What a run does around the loop's steps; steps count from 1, and a hook runs after its step.

    Attributes:
        report: (step, loss), after every step.
        rate: step -> factor on the scheduled learning rate of that step.
        restart: step -> None; may change model and optimizer (factors merged and begun anew).
        save: step -> None; the run's whole state can be written.
        evaluating: () -> what an evaluation runs inside.
    """

    report: Progress
    rate: Callable[[int], float] = lambda step: 1.0
    restart: Callable[[int], None] = lambda step: None
    save: Callable[[int], None] = lambda step: None
    evaluating: Callable[[], AbstractContextManager[object]] = nullcontext


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    micro_batches: list[Batch],
    job: Job,
    plan: TrainingPlan,
    clock: Clock,
    group: Group = ALONE,
    per_layer: PerLayer | None = None,
    weights: Sequence[int] | None = None,
) -> tuple[float, float | None, bool]:
    """Do one optimizer step over `micro_batches` and return (mean loss, gradient norm before clipping, applied).

    The loss of each micro-batch counts by `job.weight`, so that k micro-batches give the gradient of one batch. Each
    process of `group` works on every `group.size`-th of them. A step whose loss or gradient norm is not finite changes
    nothing: it is not applied. With `per_layer` only parameters whose own gradient is not finite stay unchanged; the
    norm is None where whole gradients were never there. `weights`: of the micro-batches, where they are known already.

    A device is waited for once, when losses and norm are read together (an optimizer may wait for reasons of its own).
    """
    weights = weights or [job.weight(batch) for batch in micro_batches]
    device = next(model.parameters()).device
    if per_layer is not None:
        per_layer.clock = clock
    mine = slice(group.rank, None, group.size)
    losses: list[float | Tensor] = []
    shares = [weight / sum(weights) for weight in weights[mine]]
    for batch, share in zip(micro_batches[mine], shares, strict=True):
        with clock.phase("forward"), autocast(model, plan):
            value = job.loss(model, batch)
        with clock.phase("backward"):
            (value * share).backward()
        losses.append(value.detach() if reads_late(device) else float(value.detach()))
    with clock.phase("optimizer"):
        if per_layer is not None:
            norm, applied = per_layer.finish()
            return group.total(_weighted(read_together(losses), shares), device), norm, applied
        total = _gradient_norm(optimizer, group)
        *found, size = read_together([*losses, total])
        loss = group.total(_weighted(found, shares), device)
        applied = _apply(optimizer, total, size, plan.clip_norm, math.isfinite(loss), plan.clip_scope)
    return loss, size, applied


def _weighted(losses: Sequence[float], shares: Sequence[float]) -> float:
    total = 0.0
    for loss, share in zip(losses, shares, strict=True):
        total += loss * share
    return total


def apply_gradients(
    optimizer: Optimizer,
    clip_norm: float | None = None,
    wanted: bool = True,
    group: Group = ALONE,
    clip_scope: str = "all",
) -> tuple[float, bool]:
    """Take the gradients' norm, clip (by it, or each by its own), step if all is finite and `wanted`, let them go.

    Returns the norm before clipping, and whether the step was taken.
    """
    total = _gradient_norm(optimizer, group)
    norm = float(total)
    return norm, _apply(optimizer, total, norm, clip_norm, wanted, clip_scope)


def _gradient_norm(optimizer: Optimizer, group: Group) -> Tensor:
    """Sum gradients over the processes and return the norm over all of them."""
    held = [each.grad for part in optimizer.param_groups for each in part["params"] if each.grad is not None]
    sum_whole_(held, group)
    return total_norm(held)


def _apply(
    optimizer: Optimizer, total: Tensor, norm: float, clip_norm: float | None, wanted: bool, clip_scope: str
) -> bool:
    parameters = [parameter for each in optimizer.param_groups for parameter in each["params"]]
    applied = wanted and math.isfinite(norm)
    if applied:
        if clip_norm is not None and clip_scope == "all":
            clip_(parameters, clip_norm, total)
        elif clip_norm is not None:
            for parameter in parameters:
                if parameter.grad is not None:
                    clip_alone_(parameter, clip_norm)
        take_step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    return applied


def train(
    model: nn.Module,
    optimizer: Optimizer,
    job: Job,
    plan: TrainingPlan,
    out: Outcome,
    hooks: Hooks,
    group: Group = ALONE,
) -> None:
    """Run the optimizer steps of `plan` that `out` does not hold yet, filling `out` as they go.

    Evaluation is off the clock; the first `UNTIMED_STEPS` steps of a process are too. The learning rate in the curve
    is the one the step used.

    Raises:
        DivergedError: `plan.max_skipped` steps in a row were not finite, or none at the end of the run was.
        ValueError: per-layer updates with clipping by the common norm or several processes.
    """
    device = next(model.parameters()).device
    for each in optimizer.param_groups:
        each.setdefault("initial_lr", each["lr"])
    per_layer = per_layer_of(optimizer, plan, group)
    stream = job.batches(out.steps_done * plan.accumulation)
    if reads_late(device):
        stream = ahead(stream)
    evaluate_after, untimed = evaluation_steps(plan), out.steps_done + UNTIMED_STEPS
    timed: list[Timed] = []
    for step in range(out.steps_done + 1, plan.steps + 1):
        factor = rate_factor(step - 1, plan) * hooks.rate(step)
        for each in optimizer.param_groups:
            each["lr"] = each["initial_lr"] * factor
        # What is counted of a batch is counted before it goes to the device.
        given = [next(stream) for _ in range(plan.accumulation)]
        weights, tokens = [job.weight(batch) for batch in given], sum(job.tokens(batch) for batch in given)
        batches, clock = _own_to_device(given, device, group), Clock(device)
        loss, norm, applied = train_step(model, optimizer, batches, job, plan, clock, group, per_layer, weights)
        fitted = applied and refreshed(optimizer)
        if in_curve(step, plan.steps):
            out.curve.append(_point(plan, step, loss, norm, factor))
        out.refreshes += fitted
        if step > untimed:
            timed.append((clock, fitted, tokens))
        # A device's times are read after the next step has waited for them.
        _add_times(out, timed, keep=1 if reads_late(device) and step < plan.steps else 0)
        out.skipped_in_a_row = 0 if applied else out.skipped_in_a_row + 1
        out.skipped_steps += not applied
        if out.skipped_in_a_row >= plan.max_skipped:
            raise DivergedError(f"{out.skipped_in_a_row} steps in a row were not finite, the last one step {step}")
        if applied:
            hooks.restart(step)
        if step in evaluate_after:
            with hooks.evaluating():
                _evaluate(model, job, plan, step, out)
        out.steps_done = step
        hooks.report(step, loss)
        hooks.save(step)
    if out.skipped_in_a_row:
        first = plan.steps - out.skipped_in_a_row + 1
        raise DivergedError(f"no step from step {first} to the last one, step {plan.steps}, was finite")


def _own_to_device(given: Sequence[Batch], device: torch.device, group: Group) -> list[Batch]:
    """Copy what this process works on to its device; of the others' batches a step needs the weights alone."""
    own = range(group.rank, len(given), group.size)
    return [to_device(batch, device) if index in own else batch for index, batch in enumerate(given)]


def _point(plan: TrainingPlan, step: int, loss: float, norm: float | None, factor: float) -> CurvePoint:
    rest = None if plan.rest_learning_rate is None else plan.rest_learning_rate * factor
    rate = plan.learning_rate * factor
    return CurvePoint(step=step, loss=loss, learning_rate=rate, rest_learning_rate=rest, gradient_norm=norm)


def per_layer_of(optimizer: Optimizer, plan: TrainingPlan, group: Group = ALONE) -> PerLayer | None:
    """Switch `optimizer` to per-layer updates if the plan says so.

    Raises:
        ValueError: with clipping by the common norm, or several processes.
    """
    if not plan.per_layer:
        return None
    passes = plan.accumulation // group.size
    return PerLayer(optimizer, passes, plan.clip_norm, plan.clip_scope, group)


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


def _add_times(out: Outcome, timed: list[Timed], keep: int) -> None:
    """Add the times of all but the last `keep` steps, and forget these."""
    while len(timed) > keep:
        clock, fitted, tokens = timed.pop(0)
        for name, seconds in clock.seconds.items():
            out.timed[name] = out.timed.get(name, 0.0) + seconds
        if fitted:
            out.timed["refresh"] = out.timed.get("refresh", 0.0) + clock.seconds["optimizer"]
        out.refresh_steps += fitted
        out.timed_steps += 1
        out.tokens += tokens
