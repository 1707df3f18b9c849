"""The step at the largest batch: tracked for real before a run, and traced without weights to predict it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import set_refresh_gap
from gnlorp.checks import is_sharded
from results.schema import Peak
from suites.measure import tracker
from suites.measure.cuda import cuda_rules
from suites.measure.ledger import evaluation_peak, phase_peaks
from suites.measure.recorder import hook_first
from suites.measure.trace import peak_of
from suites.resolved import Resolved
from suites.run.build import Built, build
from suites.run.clock import Clock
from suites.run.distributed import ALONE, Group
from suites.run.loop import autocast, per_layer_of, train_step
from suites.run.per_layer import PerLayer
from suites.run.shard import local
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
    """Measure gradients, a plain step and a refresh step at the largest batch. Uses up `built`: it is trained on.

    Never holds more than the run itself does: with per-layer updates the first backward pass has them already.
    """
    device = case.runtime.device
    batch = {name: tensor.to(device) for name, tensor in job.largest.items()}
    per_layer = per_layer_of(built.optimizer, case.training, _alike(case))
    try:
        return _tracked(built, job, case, _step(built, job, case, batch, device, per_layer))
    finally:
        # Its hooks hold what the run must not find in its way.
        if per_layer is not None:
            per_layer.remove()


def _alike(case: Resolved) -> Group:
    """Return the group of a step that every process does with the same batch: whole gradients need no sum."""
    return replace(ALONE, shard=case.runtime.group.shard)


def _tracked(built: Built, job: Job, case: Resolved, step: Callable[[], None]) -> Tracked:
    # Twice: a factor that starts at zero leaves its partner without a gradient in the first step, so that the
    # partner's basis and moments only come with the second.
    with counted_gradients(built.model) as gradients:
        step()
    step()
    set_refresh_gap(built.optimizer, NEVER)
    plain = tracker.track(built.model, built.optimizer, step)
    phases = phase_peaks(plain)
    refresh = None
    if set_refresh_gap(built.optimizer, 1):
        trace = tracker.track(built.model, built.optimizer, step)
        refresh = peak_of(trace)
        phases["refresh"] = peak_of(trace, "optimizer")
    if (evaluation := evaluation_peak(built, job, case)) is not None:
        phases["evaluation"] = evaluation
    return Tracked(sum(gradients.values()), peak_of(plain), refresh, phases)


@contextmanager
def counted_gradients(model: nn.Module) -> Iterator[dict[int, int]]:
    """Yield what fills up with the bytes of every parameter's gradient as it arrives, however soon it is freed."""
    found: dict[int, int] = {}

    def arrived(parameter: Tensor) -> None:
        if parameter.grad is not None:
            # Shards of gradients share a storage: a part of it each.
            shard = is_sharded(parameter.grad)
            size = local(parameter.grad).nbytes if shard else parameter.grad.untyped_storage().nbytes()
            found[id(parameter)] = size

    handles = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            handles.append(hook_first(parameter, arrived))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def prediction_build(
    job: Job, case: Resolved, refresh: bool = False
) -> Callable[[], tuple[nn.Module, Optimizer, Callable[[], None]]]:
    """Return what `predict_step_peak` traces: the plan's step at the largest batch, on a model without weights.

    Traced on a processor; for a CUDA device by its rules (`suites.measure.cuda`). `refresh`: every step is a refresh
    step, where the method has such.
    """
    cpu = torch.device("cpu")
    rules = cuda_rules if case.runtime.device.type == "cuda" else nullcontext

    def make() -> tuple[nn.Module, Optimizer, Callable[[], None]]:
        built = build(case.skeleton(), job.placement, case, cpu)
        set_refresh_gap(built.optimizer, 1 if refresh else NEVER)
        step = _step(built, job, case, job.largest, cpu, per_layer_of(built.optimizer, case.training))

        def by_rules() -> None:
            with rules():
                step()

        return built.model, built.optimizer, by_rules

    return make


def evaluation_build(job: Job, case: Resolved) -> Callable[[], tuple[nn.Module, Optimizer, Callable[[], None]]]:
    """Return what `predict_step_peak` traces: a forward at the largest evaluation batch, the optimizer's state there.

    Raises:
        ValueError: the job does not say which batch that is.
    """
    if job.evaluation is None:
        raise ValueError(f"task {case.plan.task!r}: does not say which evaluation batch is the largest")
    given = {name: each for name, each in job.evaluation.items() if name != "labels"}
    rules = cuda_rules if case.runtime.device.type == "cuda" else nullcontext
    steps = prediction_build(job, case)

    def make() -> tuple[nn.Module, Optimizer, Callable[[], None]]:
        model, optimizer, step = steps()
        step()
        model.eval()

        @torch.no_grad()
        def forward() -> None:
            with rules(), autocast(model, case.training):
                model(**given)

        return model, optimizer, forward

    return make


def _step(
    built: Built, job: Job, case: Resolved, batch: Batch, device: torch.device, per_layer: PerLayer | None
) -> Callable[[], None]:
    batches = [batch] * case.training.accumulation

    def step() -> None:
        train_step(built.model, built.optimizer, batches, job, case.training, Clock(device), per_layer=per_layer)

    return step
