"""DoRA: LoRA's direction, normalised per output unit, times a trained magnitude (Liu et al. 2024, arXiv 2402.09353).

    y = x W'^T,   W' = m * V / ||V||_row,   V = W0 + (alpha / R) * A B      through peft, norm detached (section 4.3)

Bytes of state for an O x I weight: 8 * (R * (O + I) + O) with 32-bit moments. Stated choices: bias frozen.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Method, Part, Placement, Rates, trainable
from baselines.shared.adamw import adamw
from baselines.shared.adapters import AdapterConfig, factor_parts, fold, inject, ranks, restart


class DoraConfig(AdapterConfig):
    """DoRA's settings are the adapter's."""


def attach(model: nn.Module, placement: Placement, config: DoraConfig) -> None:
    """Put the weight-normalised adapters on the target layers."""
    inject(model, placement, config, use_dora=True)


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: DoraConfig) -> Optimizer:
    """Return plain AdamW over factors, magnitudes and head."""
    return adamw(trainable(model).values(), adam)


def layer_parts(shape: tuple[int, int], config: DoraConfig) -> tuple[Part, ...]:
    """Return the frozen weight, both factors and the magnitude."""
    return (*factor_parts(shape, config), Part("magnitude", (shape[0],), trained=True))


METHOD = Method(
    name="dora",
    title="DoRA",
    arxiv="2402.09353",
    config_type=DoraConfig,
    configure=lambda rank: DoraConfig(rank=rank),
    attach=attach,
    optimizer=optimizer,
    merge=fold,
    ranks=ranks,
    layer_parts=layer_parts,
    saves_state=True,
    restart=restart,
    order=2,
    slot=2,
    factors=True,
    rates={
        "fine-tuning": Rates.around(5e-4, "own choice: LoRA's"),
        "pre-training": Rates.around(1e-3, "own choice: LoRA's"),
    },
)
