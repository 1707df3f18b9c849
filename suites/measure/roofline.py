"""How long a plan takes on a device that is not here, before anything runs: a roofline, with what it assumes.

    a micro-batch   max(FLOP / (peak * used), kernels * launch)
    a step          its micro-batches, and every byte of trained weights, gradients and moments once there and back

FLOP a token: 2 a weight of every linear layer in the forward pass, 2 more for the gradient of its input, 2 more where
it is trained; 6 a value of added factors; 12 L H T for attention (L layers of width H, T tokens); one more forward
pass with checkpointing. Left out: evaluations, bases, the norm of GradNormLoRP's rows, loading. `used`, `launch` and
kernels a linear layer are assumptions, low, expected and high; `tokens` is an upper bound: full sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from baselines.method import trainable
from results.devices import DeviceRates
from results.schema import Plan
from suites.measure.estimate import ESTIMATES, Estimate
from suites.resolved import resolved
from suites.suite import Runtime

USED: dict[Estimate, float] = {"low": 0.6, "expected": 0.35, "high": 0.15}
LAUNCH_S: dict[Estimate, float] = {"low": 2.5e-6, "expected": 5e-6, "high": 10e-6}
KERNELS = 12
"""Kernels a linear layer brings with it in forward and backward: its own, and those of norms and activations."""
RECORD_BYTES, POINT_BYTES = 20_000, 110
WORDS = (
    "a roofline from published peak rates, not a measurement: 60, 35 and 15 % of the peak used, full sequences, "
    "kernels launched in 2.5, 5 and 10 microseconds; evaluations left out"
)


@dataclass(frozen=True)
class Work:
    """What a plan's step asks of a device."""

    flops_a_micro_batch: float
    kernels_a_micro_batch: int
    bytes_a_step: float


def work_of(plan: Plan, runtime: Runtime) -> Work:
    """Return the work of one step, from the plan's model without weights."""
    case = resolved(plan, runtime)
    with torch.device("meta"):
        model, placement = case.skeleton(), case.placement()
        layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        shapes = {name: (module.out_features, module.in_features) for name, module in layers.items()}
        case.method.attach(model, placement, case.config)
    trained_names = set(trainable(model))
    taken = set(placement.targets)
    flops = 0.0
    for name, (outputs, inputs) in shapes.items():
        parts = case.method.layer_parts((outputs, inputs), case.config) if name in taken else ()
        own = any(part.trained and not part.added for part in parts) or f"{name}.weight" in trained_names
        direction = any(part.trained and part.values == outputs * inputs for part in parts)
        flops += outputs * inputs * (6 if own or direction else 4)
        flops += sum(6 * part.values for part in parts if part.added and len(part.shape) == 2 and not direction)
        flops += 2 * outputs * inputs if plan.training.checkpointing else 0
    config = getattr(model, "config", None)
    depth, width = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    length = plan.data.max_length
    flops += (16 if plan.training.checkpointing else 12) * depth * width * length
    rows = plan.training.batch_size // plan.training.accumulation
    wide = 2 if plan.training.precision == "bf16" else 4
    moved = sum(parameter.numel() for parameter in trainable(model).values())
    return Work(
        flops_a_micro_batch=flops * rows * length,
        kernels_a_micro_batch=KERNELS * len(shapes),
        bytes_a_step=moved * 2 * (2 * wide + 2 * plan.training.state_bits / 8),
    )


def seconds_a_step(work: Work, plan: Plan, device: DeviceRates, estimate: Estimate) -> float:
    """Return the seconds of an optimizer step on a device."""
    kind = "bf16" if plan.training.precision != "fp32" else "tf32" if plan.training.tf32 else "fp32"
    peak: float = getattr(device, kind)
    compute = work.flops_a_micro_batch / (peak * USED[estimate])
    micro_batch = max(compute, work.kernels_a_micro_batch * LAUNCH_S[estimate])
    return plan.training.accumulation * micro_batch + work.bytes_a_step / (device.bandwidth * USED[estimate])


def hours(plans: Sequence[Plan], runtime: Runtime, device: DeviceRates) -> dict[Estimate, float]:
    """Return the hours of all plans one after the other on a device."""
    kept: dict[str, Work] = {}
    total = dict.fromkeys(ESTIMATES, 0.0)
    for plan in plans:
        # Seeds and learning rates cost nothing; what is left names the work.
        key = f"{plan.model.name} {plan.method} {plan.method_config} {plan.targets} {plan.data.max_length} " + str(
            plan.training.model_copy(update={"steps": 1, "epochs": None, "learning_rate": 1.0, "evaluations": 1})
        )
        if key not in kept:
            kept[key] = work_of(plan, runtime)
        for estimate in ESTIMATES:
            total[estimate] += plan.training.steps * seconds_a_step(kept[key], plan, device, estimate) / 3600
    return total


def record_bytes(plans: Sequence[Plan], most_points: int) -> int:
    """Return about what the records of these plans take on disk."""
    return sum(RECORD_BYTES + POINT_BYTES * min(plan.training.steps, math.ceil(most_points)) for plan in plans)
