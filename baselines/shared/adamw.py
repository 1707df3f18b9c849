"""The inner AdamW that all methods share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, MethodConfig, Placement, trainable


def adamw(parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], adam: AdamSettings) -> Optimizer:
    """Return AdamW over `parameters` or groups of them.

    It is torch's fused one for 32-bit moments, bitsandbytes' blockwise one for 8-bit.

    Raises:
        ValueError: `state_bits` is neither 32 nor 8, or 8 without bitsandbytes.
    """
    chosen: Any = list(parameters)
    options: dict[str, Any] = {
        "lr": adam.learning_rate, "betas": adam.betas, "eps": adam.eps, "weight_decay": adam.weight_decay,
    }  # fmt: skip
    if adam.state_bits == 32:
        return torch.optim.AdamW(chosen, fused=True, **options)
    if adam.state_bits == 8:
        check_bitsandbytes()
        from bitsandbytes.optim.adamw import AdamW8bit

        optimizer: Optimizer = AdamW8bit(chosen, **options)
        return optimizer
    raise ValueError(f"state_bits {adam.state_bits}: must be 32 or 8 (nearest allowed value: {_nearest(adam)})")


def adamw_over_trained(model: nn.Module, placement: Placement, adam: AdamSettings, config: MethodConfig) -> Optimizer:
    """Return plain AdamW over all that is trained: the `optimizer` of a method that has no rule of its own."""
    return adamw(trainable(model).values(), adam)


def check_bitsandbytes() -> None:
    """Raise ValueError with the line that installs it where bitsandbytes is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("8-bit moments need bitsandbytes, which is not installed: pip install 'gnlorp[eight-bit]'")


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


def _nearest(adam: AdamSettings) -> int:
    return 8 if adam.state_bits < 20 else 32
