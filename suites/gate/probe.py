"""Measure any model and optimizer the way the suites do, for `gnlorp_gate`: bytes, shapes, peak and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from suites.measure import live, tracker


def probe(
    model: nn.Module, optimizer: Optimizer, loss: Callable[[nn.Module, Any], Tensor], batches: Iterable[Any]
) -> dict[str, Any]:
    """Train `model` on `batches`, one optimizer step each, and return what the gate compares.

    Returns:
        trainable_bytes, state_bytes, state_shapes ("name shape dtype" -> count) and the tracked peak of the last step
        by category, in bytes, all exact; "loss" and "gradient_norm", a number a step.

    Raises:
        ValueError: fewer than 3 batches: the state is complete and the peak the usual one only after two steps.
    """
    todo = list(batches)
    if len(todo) < 3:
        raise ValueError(
            f"{len(todo)} batches: must be at least 3, for the peak is that of a step with its whole state"
        )
    losses: list[float] = []
    norms: list[float] = []

    def step(batch: Any) -> None:
        value = loss(model, batch)
        value.backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        norms.append(float(nn.utils.get_total_norm(gradients)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(value.detach()))

    for batch in todo[:-1]:
        step(batch)
    peak = tracker.track_step(model, optimizer, lambda: step(todo[-1]))
    return {
        "trainable_bytes": live.trainable_bytes(model),
        "state_bytes": live.state_bytes(optimizer, model),
        "state_shapes": live.state_shapes(optimizer),
        **{f"peak {name}": value for name, value in peak.model_dump().items()},
        "loss": losses,
        "gradient_norm": norms,
    }


def threads_for(replicate: int) -> None:
    """Set torch's threads to one or two by turns, so that replicates differ as two machines do."""
    torch.set_num_threads(1 + replicate % 2)
