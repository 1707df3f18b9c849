"""Throwaway: LoRA under another name, to see what a method needs (Hu et al. 2021, arXiv 2106.09685), through peft.

    y = x W0^T + (alpha / R) * dropout(x) B^T A^T

Bytes of state for an O x I weight: 8 * R * (O + I) with 32-bit moments. Stated choices: bias frozen.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Method, Placement, Rates, trainable
from baselines.shared.adamw import adamw
from baselines.shared.adapters import AdapterConfig, factor_parts, fold, inject, ranks, restart


def attach(model: nn.Module, placement: Placement, config: AdapterConfig) -> None:
    """Put the adapters on the target layers."""
    inject(model, placement, config)


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: AdapterConfig) -> Optimizer:
    """Return plain AdamW over factors and head."""
    return adamw(trainable(model).values(), adam)


METHOD = Method(
    name="throwaway",
    title="Throwaway method",
    arxiv="2106.09685",
    config_type=AdapterConfig,
    configure=lambda rank: AdapterConfig(rank=rank),
    attach=attach,
    optimizer=optimizer,
    merge=fold,
    ranks=ranks,
    layer_parts=factor_parts,
    saves_state=True,
    restart=restart,
    factors=True,
    rates={"fine-tuning": Rates.around(5e-4, "LoRA's"), "pre-training": Rates.around(1e-3, "LoRA's")},
)
