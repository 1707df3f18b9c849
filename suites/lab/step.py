"""The first half of a training step, traced alone: with `loop.apply_gradients` after it, it is `loop.train_step`."""

from __future__ import annotations

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


def give_gradients(optimizer: Optimizer) -> None:
    """Put a gradient on every parameter, as if a backward pass had come."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
