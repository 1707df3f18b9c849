"""A training step in its two halves, so that each can be traced alone; together they are the loop's `train_step`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from suites.suite import Batch

Loss = Callable[[nn.Module, Batch], Tensor]


def forward_backward(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> Tensor:
    """Run every micro-batch forward and backward; return the last loss, which the loop holds until the step is over."""
    rows = [len(next(iter(batch.values()))) for batch in batches]
    for batch, count in zip(batches, rows, strict=True):
        value = loss(model, batch)
        (value * (count / sum(rows))).backward()
    return value


def finish(optimizer: Optimizer, clip_norm: float | None = None) -> None:
    """Take the gradients' norm, clip by it, step, and let the gradients go."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if math.isfinite(float(norm)):
        if clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def give_gradients(optimizer: Optimizer) -> None:
    """Put a gradient on every parameter, as if a backward pass had come."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
