"""The inner AdamW that all methods share, and what its state costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings
from gnlorp.moments import optimizer_state_bytes


def adamw(parameters: Iterable[nn.Parameter], adam: AdamSettings) -> Optimizer:
    """Return AdamW over `parameters`: torch's fused one for 32-bit moments, bitsandbytes' blockwise one for 8-bit.

    Raises:
        ValueError: `state_bits` is neither 32 nor 8.
    """
    chosen = list(parameters)
    options: dict[str, Any] = {
        "lr": adam.learning_rate, "betas": adam.betas, "eps": adam.eps, "weight_decay": adam.weight_decay,
    }  # fmt: skip
    if adam.state_bits == 32:
        return torch.optim.AdamW(chosen, fused=True, **options)
    if adam.state_bits == 8:
        from bitsandbytes.optim.adamw import AdamW8bit

        optimizer: Optimizer = AdamW8bit(chosen, **options)
        return optimizer
    raise ValueError(f"state_bits {adam.state_bits}: must be 32 or 8 (nearest allowed value: {_nearest(adam)})")


def share_tables(optimizer: Optimizer) -> None:
    """Make all parameters share bitsandbytes' two quantisation tables again: loading a state gives each its own."""
    tables = getattr(optimizer, "name2qmap", None)
    if not tables:
        return
    for state in optimizer.state.values():
        for key, name in (("qmap1", "dynamic"), ("qmap2", "udynamic")):
            held, shared = state.get(key), tables.get(name)
            if held is None or shared is None:
                continue
            if tables[name].device != held.device:
                tables[name] = shared.to(held.device)
            assert torch.equal(held, tables[name]), f"{key} is not bitsandbytes' table {name!r}"
            state[key] = tables[name]


def adam_state_bytes(elements: int, state_bits: int) -> int:
    """Return the bytes of Adam's two moments for one parameter of `elements` values, counters and tables left out.

    32 bits: 8 bytes a value. 8 bits: 2 bytes a value and two fp32 block maxima per 256 values; parameters under 4,096
    values stay at 32 bits, as in bitsandbytes.
    """
    return optimizer_state_bytes((elements,), projection_rank=None, state_bits=state_bits)


def _nearest(adam: AdamSettings) -> int:
    return 8 if adam.state_bits < 20 else 32
