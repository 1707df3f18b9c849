"""Before the first run: do data, model and settings fit, and what will the peak be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from baselines.shared import targets
from results.schema import Plan
from suites.measure.estimate import ESTIMATES, estimated
from suites.measure.predict import Prediction, predict_step_peak
from suites.registry import get_suite
from suites.resolved import Resolved, resolved
from suites.run.build import check_fit
from suites.run.processes import in_processes
from suites.run.tracked import evaluation_build, prediction_build
from suites.suite import Job, Runtime

ALIKE_FROM = 2
Found = TypeVar("Found")


def check(plans: Sequence[Plan], runtime: Runtime) -> list[str]:
    """Check every plan against its data and its model, each different case once; return what should be known of them.

    Raises:
        ValueError: the first thing that does not fit.
    """
    notes: list[str] = []
    for plan in {(plan.task, plan.data, plan.model): plan for plan in plans}.values():
        notes += get_suite(plan.suite).verify(plan, runtime)
    for plan in {(plan.model, plan.targets): plan for plan in plans}.values():
        notes += _left_out(plan, runtime)
    for plan in {_fit_key(plan): plan for plan in plans}.values():
        check_fit(resolved(plan, runtime))
    return list(dict.fromkeys(notes))


def _fit_key(plan: Plan) -> object:
    """Return what `check_fit` looks at: all but task, data, seed, and the training's numbers."""
    training = plan.training
    return (
        plan.suite,
        plan.model,
        plan.targets,
        plan.method,
        str(plan.method_config),
        training.state_bits,
        training.per_layer,
        training.recompute,
        training.bf16_updates,
        training.compile,
    )


def _left_out(plan: Plan, runtime: Runtime) -> list[str]:
    with torch.device("meta"):
        names = targets.left_out(resolved(plan, runtime).skeleton(), plan.targets)
    if not names:
        return []
    return [
        f"warning: targets {plan.targets!r} leaves out matrices of model {plan.model.name}: {', '.join(names)}; "
        "methods work on the others alone (--set targets=... takes endings of linear layers, comma-joined)"
    ]


def predict(plans: Sequence[Plan], runtime: Runtime) -> dict[str, Prediction]:
    """Return plan hash -> the plain step predicted by the same trace without weights.

    One trace serves all plans whose step has the same shapes: other seeds, other tasks of the same largest batch. From
    the second micro-batch on all are alike (gradients are there), so that no more than two are traced. The methods,
    which share no trace, are shared out to `runtime.workers` processes.
    """
    return _traced(plans, runtime, _plain)


def device_bytes(plans: Sequence[Plan], runtime: Runtime) -> dict[str, int]:
    """Return plan hash -> bytes of a device that a run takes at most, by the high estimate, context included.

    Of a plain step, of one with a refresh, and of the largest evaluation where the task says which that is.
    """
    return _traced(plans, runtime, _most)


def _traced(plans: Sequence[Plan], runtime: Runtime, trace: Callable[[Job, Resolved], Found]) -> dict[str, Found]:
    names = dict.fromkeys(plan.method for plan in plans)
    shares = [[plan for plan in plans if plan.method == name] for name in names] if runtime.workers > 1 else [plans]
    found: dict[str, Found] = {}
    parts = [(share, runtime, trace) for share in shares]
    for part in in_processes(_traced_parts, parts, runtime.workers, runtime.threads):
        found |= part
    return found


def _plain(job: Job, case: Resolved) -> Prediction:
    return predict_step_peak(prediction_build(job, case))


def _most(job: Job, case: Resolved) -> int:
    traced = [_plain(job, case).held]
    if case.method.bases:
        traced.append(predict_step_peak(prediction_build(job, case, refresh=True)).held)
    if job.evaluation is not None:
        traced.append(predict_step_peak(evaluation_build(job, case)).held)
    return max(estimated(each, "high") for each in traced)


def predict_peaks(plans: Sequence[Plan], runtime: Runtime) -> dict[str, int | None]:
    """Return plan hash -> tracked peak bytes of a plain step, as `predict` finds them."""
    return {key: found.peak.total_bytes for key, found in predict(plans, runtime).items()}


def memory_warnings(
    plans: Sequence[Plan], predictions: Mapping[str, Prediction], device_bytes: int | None
) -> list[str]:
    """Return a line for every method whose plain step may not fit into a device's memory.

    Raises:
        ValueError: its tensors alone are more than there is.
    """
    found: list[str] = []
    if device_bytes is None:
        return found
    for name in dict.fromkeys(plan.method for plan in plans):
        own = [(predictions[plan.hash()].held, plan) for plan in plans if plan.method == name]
        held, plan = max(own, key=lambda pair: pair[0].reserved_bytes)
        sizes = {estimate: estimated(held, estimate) for estimate in ESTIMATES}
        there = f"{device_bytes / 2**30:.2f} GiB of the device"
        if held.tensor_bytes > device_bytes:
            raise ValueError(
                f"method {name!r}, task {plan.task!r}: a step's tensors alone take {held.tensor_bytes / 2**30:.2f} GiB "
                f"(predicted), more than the {there}; --set checkpointing=true, a larger accumulation, state_bits=8 or "
                "per_layer=true take less"
            )
        if sizes["high"] > device_bytes:
            words = ", ".join(f"{estimate} {size / 2**30:.2f}" for estimate, size in sizes.items())
            found.append(f"warning: {name}, task {plan.task}: may not fit the {there}: {words} GiB (predicted)")
    return found


def _traced_parts(plans: Sequence[Plan], runtime: Runtime, trace: Callable[[Job, Resolved], Found]) -> dict[str, Found]:
    traced: dict[object, Found] = {}
    found: dict[str, Found] = {}
    jobs: dict[object, tuple[Job, object]] = {}
    for plan in plans:
        case = resolved(plan, runtime)
        job_key = (plan.task, plan.data, plan.training.batch_size, plan.training.accumulation)
        if job_key not in jobs:
            job = case.outline()
            jobs[job_key] = (job, _shapes(job, case))
        job, shapes = jobs[job_key]
        key = (shapes, _step_key(plan))
        if key not in traced:
            traced[key] = trace(job, replace(case, plan=_few_micro_batches(plan)))
        found[plan.hash()] = traced[key]
    return found


def _few_micro_batches(plan: Plan) -> Plan:
    training = plan.training
    few = min(training.accumulation, ALIKE_FROM)
    return plan.model_copy(update={"training": training.model_copy(update={"accumulation": few})})


def _shapes(job: Job, case: Resolved) -> object:
    # Whether an input is constant counts too: a model leaves out an attention mask that hides nothing.
    batch = tuple(
        (name, tuple(tensor.shape), tensor.dtype, bool((tensor == tensor.flatten()[0]).all()))
        for name, tensor in sorted(job.largest.items())
    )
    with torch.device("meta"):
        model = case.skeleton()
    return batch, tuple((name, tuple(parameter.shape)) for name, parameter in model.named_parameters())


def _step_key(plan: Plan) -> object:
    training = plan.training
    return (
        plan.model,
        plan.targets,
        plan.method,
        str(plan.method_config),
        min(training.accumulation, ALIKE_FROM),
        training.precision,
        training.bf16_updates,
        training.state_bits,
        training.per_layer,
        training.checkpointing,
        training.recompute,
        training.clip_norm is None,
        training.clip_scope,
    )
