"""LoRA: a frozen weight plus a trained low-rank product (Hu et al. 2021, arXiv 2106.09685), through peft.

    y = x W0^T + (alpha / R) * dropout(x) B^T A^T        A: (O, R) starts at zero;  B: (R, I) Kaiming-uniform

Bytes of state for an O x I weight: 8 * R * (O + I) with 32-bit moments. Stated choices: bias frozen, plain (not
rank-stabilised) scaling.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Method, Placement, Rates, trainable
from baselines.shared.adamw import adamw
from baselines.shared.adapters import AdapterConfig, factor_parts, fold, inject, ranks, restart


class LoraConfig(AdapterConfig):
    """LoRA's settings are the adapter's."""


def attach(model: nn.Module, placement: Placement, config: LoraConfig) -> None:
    """Put the adapters on the target layers."""
    inject(model, placement, config)


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: LoraConfig) -> Optimizer:
    """Return plain AdamW over factors and head."""
    return adamw(trainable(model).values(), adam)


METHOD = Method(
    name="lora",
    title="LoRA",
    arxiv="2106.09685",
    config_type=LoraConfig,
    configure=lambda rank: LoraConfig(rank=rank),
    attach=attach,
    optimizer=optimizer,
    merge=fold,
    ranks=ranks,
    layer_parts=factor_parts,
    saves_state=True,
    restart=restart,
    order=1,
    slot=1,
    factors=True,
    rates={
        "fine-tuning": Rates.around(5e-4, "Hu et al., table 9: RoBERTa base 4e-4 and 5e-4"),
        "pre-training": Rates.around(1e-3, "GaLore's protocol picks from 1e-4 to 1e-2 (arXiv 2403.03507)"),
    },
)
