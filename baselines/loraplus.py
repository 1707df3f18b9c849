"""LoRA+: LoRA whose two factors have learning rates of their own (Hayou et al. 2024, arXiv 2402.12354), through peft.

    y = x W0^T + (alpha / R) * dropout(x) B^T A^T;   B: AdamW at lr;   A: AdamW at ratio * lr

A: (O, R) starts at zero, B: (R, I) is drawn; the paper and peft call them the other way round, and write
eta_B = lambda * eta_A for the factor that starts at zero.

Bytes of state for an O x I weight: 8 * R * (O + I) with 32-bit moments. Stated choices: bias frozen; the rest is at lr,
as for every other method, where peft's `create_loraplus_optimizer` has its vectors at ratio * lr.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Placement, Rates, trainable
from baselines.shared.adamw import adamw
from baselines.shared.adapters import AdapterConfig, adapter


class LoraPlusConfig(AdapterConfig):
    """Settings of the adapter, and of its two learning rates."""

    ratio: float = Field(
        default=20.0, ge=1, description="learning rate of the zero factor over that of the other (release's README: 20)"
    )


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: LoraPlusConfig) -> Optimizer:
    """Return AdamW in two groups: the factors that start at zero at the higher rate, everything else."""
    named = trainable(model)
    zero = [parameter for name, parameter in named.items() if ".lora_B." in name]
    others = [parameter for name, parameter in named.items() if ".lora_B." not in name]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": zero, "lr": config.ratio * adam.learning_rate}]
    return adamw(groups, adam)


METHOD = adapter(
    name="loraplus",
    title="LoRA+",
    arxiv="2402.12354",
    config_type=LoraPlusConfig,
    configure=lambda rank: LoraPlusConfig(rank=rank),
    optimizer=optimizer,
    order=12,
    rates={
        "fine-tuning": Rates.around(5e-5, "release's README and GLUE script for roberta-base"),
        "pre-training": Rates.around(1e-4, "own choice: a tenth of LoRA's, for the ratio"),
    },
)
